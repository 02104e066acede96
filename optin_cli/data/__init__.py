"""Samples and batches from task names, files and folders."""
