"""Schemas of every file that a stage writes, and how to read them. Importing them does not import torch."""
