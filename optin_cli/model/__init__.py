"""Models as structures: blocks and groups of units, masking, pruning, costs, forward passes."""
