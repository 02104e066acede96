"""Calibration batches of a scoring run."""

from collections.abc import Sequence
from dataclasses import dataclass

from optin_cli.artifacts.base import Source
from optin_cli.checkpoints.batching import BatchOptions
from optin_cli.checkpoints.checkpoint import Checkpoint
from optin_cli.data.batch import Batch
from optin_cli.data.images.batches import ImageBatches
from optin_cli.data.load import AnySamples
from optin_cli.options.scoring import ScoreOptions
from optin_cli.tasks.schema import Task


@dataclass(frozen=True)
class Calibration:
    """Calibration batches, and the smaller set that the exact estimator sees."""

    source: Source
    batches: Sequence[Batch]
    exact_batches: Sequence[Batch]


def calibrate(
    checkpoint: Checkpoint,
    samples: AnySamples,
    options: ScoreOptions,
    *,
    task: Task | None,
    labelled: bool,
    decoded: Sequence[Batch] = (),
) -> Calibration:
    """Batches for a scoring run: all samples, and the first `exact_samples` of them for the exact estimator.

    Scoring goes through them again and again, so images are kept decoded, and each is decoded once.

    Args:
        decoded: batches of all the samples from an earlier call, such as one without labels, whose images are reused.
    """
    how = BatchOptions(options.batch_size, options.max_length, task, labelled)

    def batches_of(chosen: AnySamples, decoded: Sequence[Batch]) -> list[Batch]:
        batches = checkpoint.input.batches(chosen, how)
        return batches.filled_from(decoded) if decoded and isinstance(batches, ImageBatches) else [*batches]

    batches = batches_of(samples, decoded)
    whole = len(samples) <= options.exact_samples
    exact_batches = batches if whole else batches_of(samples.head(options.exact_samples), batches)
    return Calibration(Source(name=samples.name, sha256=samples.sha256), batches, exact_batches)
