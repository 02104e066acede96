"""Architecture descriptions: one JSON file per model family, their schema and their lookup."""
