"""Least-squares refit of the layers that read pruned units."""
