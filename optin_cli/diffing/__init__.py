"""Differences between two artifacts or checkpoints."""
