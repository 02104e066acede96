"""Search for the best mask within a budget. Importing it does not import torch."""
