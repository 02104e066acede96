"""Text: tables of rows, samples, tokenisation."""
