"""Checkpoints: loading, saving and verifying models with all that belongs to them."""
