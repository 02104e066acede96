"""Select rows by seed and content, whatever their order, and hash the selection.

A row's rank is sha256(seed, its digest, its number among rows of the same digest); the lowest ranks are taken.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence


def digest_of(content: object) -> str:
    """Hex sha256 of what JSON can spell."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def rank_rows(digests: Sequence[str], labels: Sequence[object] | None, seed: int) -> list[int]:
    """Row indices by rank; labels order rows of the same content only, never choose between contents."""
    same: defaultdict[str, list[int]] = defaultdict(list)
    for index, digest in enumerate(digests):
        same[digest].append(index)
    ranks = {}
    for digest, indices in same.items():
        if labels is not None:
            indices.sort(key=lambda i: repr(labels[i]))
        for occurrence, index in enumerate(indices):
            ranks[index] = digest_of([seed, digest, occurrence])
    return sorted(ranks, key=ranks.__getitem__)


def content_hash(digests: Sequence[str], labels: Sequence[object] | None) -> str:
    """Hex sha256 over contents and labels, whatever their order."""
    return digest_of(sorted(digests) if labels is None else sorted(zip(digests, map(repr, labels), strict=True)))
