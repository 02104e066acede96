"""Named ways of pruning, ours and published ones."""
