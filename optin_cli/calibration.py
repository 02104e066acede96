"""A checkpoint and samples in; batches that its model takes out."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from optin_cli.artifacts import Source
from optin_cli.checkpoint import Checkpoint
from optin_cli.data import DEFAULT_LENGTH, Batch, Samples, label_ids, make_batches, usable_length
from optin_cli.options import ScoreOptions
from optin_cli.scoring import Calibration
from optin_cli.tasks import Task


def model_length(checkpoint: Checkpoint, tokenizer: Any, asked: int | None, *, default: int = DEFAULT_LENGTH) -> int:
    """Tokens a sample may have: `asked`, or the default, within what the model holds (UsageError beyond)."""
    return usable_length(tokenizer, checkpoint.config, asked, checkpoint.model, default=default)


def encode(
    checkpoint: Checkpoint,
    samples: Samples,
    tokenizer: Any,
    *,
    batch_size: int,
    max_length: int,
    task: Task | None = None,
    labelled: bool = False,
) -> list[Batch]:
    """Tokenise into batches of the inputs that the model's forward names, on the model's device."""
    labels = label_ids(samples, task, checkpoint.config) if labelled else None
    batches = make_batches(samples, tokenizer, batch_size=batch_size, max_length=max_length, label_map=labels)
    return fit_inputs(checkpoint, batches)


def fit_inputs(checkpoint: Checkpoint, batches: Iterable[Batch]) -> list[Batch]:
    """The batches with only the inputs that the model's forward names, on the model's device."""
    taken = inspect.signature(checkpoint.model.forward).parameters
    return [
        replace(batch, inputs={k: v for k, v in batch.inputs.items() if k in taken}).to(checkpoint.device)
        for batch in batches
    ]


def calibrate(
    checkpoint: Checkpoint, samples: Samples, options: ScoreOptions, *, task: Task | None, labelled: bool
) -> Calibration:
    """Batches for a scoring run: all samples, and the first `exact_samples` of them for the exact estimator."""
    tokenizer = checkpoint.tokenizer()
    length = model_length(checkpoint, tokenizer, options.max_length)
    batches, exact_batches = (
        encode(
            checkpoint,
            chosen,
            tokenizer,
            batch_size=options.batch_size,
            max_length=length,
            task=task,
            labelled=labelled,
        )
        for chosen in (samples, samples.head(options.exact_samples))
    )
    return Calibration(Source(name=samples.name, sha256=samples.sha256), batches, exact_batches)
