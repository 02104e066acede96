"""Trimming a vocabulary: tokens that texts never use leave embedding, output head and tokenizer together."""
