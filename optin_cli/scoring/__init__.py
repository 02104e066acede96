"""Importance scores of every unit."""
