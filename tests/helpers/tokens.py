"""Masks by which tokens merge."""

from optin_cli.model.tokens import tokens_of


def tokens_kept(checkpoint, *counts):
    """A mask by which so many tokens merge behind the first blocks."""
    tokens = tokens_of(checkpoint.structure)
    kept, left = {}, tokens.mergeable
    for (name, _), count in zip(tokens.blocks, counts, strict=False):
        share = (left - count) * tokens.mergeable // left
        kept[f"{name}.token"] = list(range(tokens.mergeable - share, tokens.mergeable))
        left -= count
    assert tokens.counts(kept)[: len(counts)] == list(counts)
    return kept
