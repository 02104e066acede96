"""One self-contained HTML page about a pruned model."""
