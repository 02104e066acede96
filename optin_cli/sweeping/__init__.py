"""Many budgets and recipes in one run, or the smallest model within an allowed drop."""
