"""Options of every stage, with their defaults and ranges. Importing them does not import torch."""
