"""Pruning a checkpoint by a mask into a certified folder."""
