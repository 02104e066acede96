"""Benchmark tasks: one JSON file per task, their schema and their lookup."""
