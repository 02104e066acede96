"""Batches of labelled pairs of texts in which every text is a row of its own."""

import hashlib
from dataclasses import replace
from typing import Any

import torch

from optin_cli.data.batch import Batch, cut_order, unique_keys
from optin_cli.data.labels import label_values
from optin_cli.data.text.samples import Samples
from optin_cli.data.text.tokenize import INPUTS, pad_rows, tokenise
from optin_cli.errors import DataError
from optin_cli.tasks.schema import Task


def pair_batches(samples: Samples, task: Task, tokenizer: Any, *, batch_size: int, max_length: int) -> list[Batch]:
    """Tokenise each text alone; a batch has the first texts of its pairs, then the second ones.

    Labels become the cosines that they stand for: the lowest of the task's range 0, the highest 1. batch_size: texts
    per batch, of whole pairs. max_length: tokens per text, special ones included; longer texts are truncated.

    Raises DataError: no labels, samples of one text, a label out of the task's range, or a task without one.
    """
    labels = label_values(samples)
    if labels is None:
        raise DataError(f"{samples.name} has no labels, which {task.name} is to be learnt by.")
    if len(samples.texts[0]) != 2:
        raise DataError(
            f"{samples.name} has one text a sample; labels of {task.name} are those of two.",
            hint="Name both columns with --text-columns A,B.",
        )
    cosines = [_cosine(label, task, samples.name) for label in labels]
    sides = [
        tokenise(replace(samples, texts=[(texts[side],) for texts in samples.texts]), tokenizer, max_length)
        for side in range(2)
    ]
    ids = list(zip(*(side["input_ids"] for side in sides), strict=True))
    hashes = [hashlib.sha256(repr(pair).encode()).hexdigest()[:32] for pair in ids]
    order = sorted(range(len(ids)), key=lambda i: (max(map(len, ids[i])), hashes[i], cosines[i]))
    names = unique_keys(order, hashes)
    batches = []
    for rows in cut_order(order, max(batch_size // 2, 1)):
        inputs = {
            name: pad_rows([side[name][i] for side in sides for i in rows], tokenizer, name)
            for name in INPUTS
            if name in sides[0]
        }
        keys = tuple(f"{names[i]}.{side}" for side in range(2) for i in rows)
        batches.append(Batch(inputs, torch.tensor([cosines[i] for i in rows]), keys, (*rows, *rows), paired=True))
    return batches


def _cosine(label: float, task: Task, name: str) -> float:
    if task.label_range is None:
        raise DataError(f"The task {task.name} does not say between which numbers its labels lie.")
    low, high = task.label_range
    if not low <= label <= high:
        raise DataError(
            f"{name} has the label {label:g}; those of {task.name} lie between {low:g} and {high:g}.",
            hint="Pass the data of that task, or choose what needs no labels.",
        )
    return (label - low) / (high - low)
