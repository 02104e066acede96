"""What a model and its units cost, in MACs, parameters and time."""
