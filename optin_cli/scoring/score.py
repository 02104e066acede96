"""Score the importance of every unit of a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from optin_cli.artifacts.scores import Scores
from optin_cli.checkpoints.batches import read_samples, require_loss
from optin_cli.checkpoints.checkpoint import Checkpoint, as_checkpoint
from optin_cli.checkpoints.synthetic_inputs import workload_length
from optin_cli.data.sources import resolve_source
from optin_cli.errors import UsageError
from optin_cli.options.images import ImageOptions
from optin_cli.options.scoring import CRITERIA, ScoreOptions
from optin_cli.progress import SILENT, Progress
from optin_cli.scoring.accumulate import SavedState
from optin_cli.scoring.calibration import calibrate
from optin_cli.scoring.iterative import score_in_rounds
from optin_cli.scoring.kinds import estimators_of
from optin_cli.scoring.one_shot import only_units
from optin_cli.tasks.registry import task_named


def score(
    checkpoint: Checkpoint | str | Path,
    calib: str | None = None,
    *,
    data: str | Path | None = None,
    columns: Sequence[str] | None = None,
    label_column: str | None = None,
    options: ScoreOptions | None = None,
    seq_len: int | None = None,
    state: Path | None = None,
    resume: bool = False,
    progress: Progress = SILENT,
    images: ImageOptions | None = None,
) -> Scores:
    """Importance of every unit.

    Args:
        calib: a task name, or a file or folder of texts or images; labels are needed by the fisher criterion alone.
        data: a local copy of the task's dataset.
        state: where an interrupted run leaves what `resume` continues from.
        images: what may be skipped of images. note: told what a user should know, such as images skipped.

    Raises:
        OptinError: bad data, an unfit checkpoint, or options that contradict each other.
    """
    options = options or ScoreOptions()
    criterion = CRITERIA[options.criterion]
    if criterion.needs_data and calib is None and data is None:
        raise UsageError(
            f"The criterion {options.criterion} needs calibration data.",
            hint="Pass --calib with a task name (sst2) or a file or folder of texts.",
        )
    checkpoint = as_checkpoint(checkpoint)
    if criterion.needs_labels:
        require_loss(
            checkpoint,
            resolve_source(calib, None, None if data is None else Path(data), checkpoint.modality)[0],
            data=str(calib or data),
            needed_by=f"The criterion {options.criterion}",
            hint="Use --criterion trajectory, which needs no labels, or labelled data of the model's own task.",
        )
    extra = estimators_of(checkpoint, options)
    checkpoint = replace(checkpoint, structure=only_units(checkpoint.structure, options))
    calibration = None
    if criterion.needs_data:
        samples = read_samples(
            checkpoint,
            calib,
            data=data,
            split="calibration",
            columns=columns,
            label_column=label_column,
            limit=options.samples,
            seed=options.seed,
            images=images,
            progress=progress,
            labelled=criterion.needs_labels,
        )
        task = task_named(calib)
        calibration = calibrate(checkpoint, samples, options, task=task, labelled=criterion.needs_labels)
    saved = SavedState(state, resume)
    length = workload_length(checkpoint, seq_len)
    scores = score_in_rounds(checkpoint, calibration, options, seq_len=length, state=saved, progress=progress)
    if calibration is None:
        return scores
    for name, estimator in extra.items():
        scores = estimator.add(scores, checkpoint, calibration, options, saved.part(name), progress)
    return scores
