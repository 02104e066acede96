"""Sentence pairs with their similarity."""

from dataclasses import replace

from optin_cli.data.text.samples import Samples
from optin_cli.tasks.registry import load_task

TASK = load_task("stsb-cosine")

PAIRS = [("a b c", "a b c", 5.0), ("good film", "a b c d e f", 1.0), ("d e f", "d e f", 5.0), ("bad", "g h i j", 2.5)]

ROWS = [dict(zip(("sentence1", "sentence2", "label"), pair, strict=True)) for pair in PAIRS]


def samples_of(pairs, **changes):
    labels = [label for *_, label in pairs]
    found = Samples("d", "all", [tuple(texts) for *texts, _ in pairs], labels, None, "0" * 64, len(labels))
    return replace(found, **changes)
