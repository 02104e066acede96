"""The Python API of sweeps: a checkpoint, data and budgets in; a folder of measured points out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from optin_cli.artifacts import Source, Sweep, SweepPoint
from optin_cli.calibration import Note, calibrate, read_samples
from optin_cli.checkpoint import Checkpoint, as_checkpoint
from optin_cli.data import AnySamples
from optin_cli.data.rows import WHOLE
from optin_cli.errors import DataError, UsageError
from optin_cli.options import EvalOptions, ImageOptions, ScoreOptions, SweepOptions
from optin_cli.scoring import Progress
from optin_cli.sweeping import check_folder, find_recipe, run_sweep
from optin_cli.tasks import load_task, task_named


def sweep(
    checkpoint: Checkpoint | str | Path,
    calib: str,
    task: str,
    output: str | Path,
    options: SweepOptions,
    *,
    data: str | Path | None = None,
    calib_data: str | Path | None = None,
    columns: Sequence[str] | None = None,
    label_column: str | None = None,
    eval_samples: int | None = None,
    scoring: ScoreOptions | None = None,
    evaluation: EvalOptions | None = None,
    resume: bool = False,
    force: bool = False,
    progress: Progress = lambda _done, _total, _what: None,
    report: Callable[[SweepPoint], None] = lambda _point: None,
    images: ImageOptions | None = None,
    note: Note = lambda _message: None,
) -> Sweep:
    """Score once, then prune and evaluate at every budget; or find the smallest model within an allowed drop.

    Args:
        calib: a task name, or a file or folder of texts or images; labels are needed by some recipes alone.
        output: folder for sweep.json and pictures and, with `options.max_drop`, model/ and mask.json. If no model
            is within the drop, none is written and the result has nothing `chosen`.
        data: a local copy of the task's dataset; a folder also serves calibration by the same task.
        calib_data: a local copy of the calibration task's dataset.
        resume: take the points that an earlier sweep in `output` measured with the same options and inputs.
        report: told every point as soon as it is there.
        images, note: as for `score`.

    Raises:
        OptinError: bad data, a budget that no mask can meet, or options that contradict each other.
    """
    scoring, evaluation = scoring or ScoreOptions(), evaluation or EvalOptions()
    known, chosen = load_task(task), {name: find_recipe(name) for name in options.recipes}
    check_folder(Path(output), resume=resume, force=force)
    opened = as_checkpoint(checkpoint)
    samples = read_samples(
        opened,
        None,
        task=known,
        data=data,
        split="evaluation",
        columns=columns,
        label_column=label_column,
        limit=eval_samples,
        seed=scoring.seed,
        images=images,
        tell=progress,
        note=note,
    )
    if not samples.labelled:
        raise DataError(f"{samples.name} has no labels to measure {known.metrics[0]} by.")
    shared = calib_data is None and calib == task and data is not None and Path(data).is_dir()
    calib_data = data if shared else calib_data

    def read(*, labelled: bool) -> AnySamples:
        return read_samples(
            opened,
            calib,
            data=calib_data,
            split="calibration",
            columns=columns,
            label_column=label_column,
            limit=scoring.samples,
            seed=scoring.seed,
            images=images,
            tell=progress,
            note=note,
            labelled=labelled,
        )

    needy = [name for name, recipe in chosen.items() if recipe.needs_labels]
    calibration = read(labelled=False)
    # Texts that a model reads one at a time have no labels of their own; the pairs that they make up do.
    by_labels = read(labelled=True) if needy and known.each_alone else calibration
    if shared and calibration.split == WHOLE:
        raise UsageError(
            f"{data} has no splits, so the model would be scored on the very samples that it is evaluated on.",
            hint="Name other samples with --calib PATH, or a folder with train and validation in it with --data.",
        )
    if by_labels.labels is None and needy:
        raise DataError(
            f"The recipe {needy[0]} needs labels, and the calibration data {calibration.name} has none.",
            hint="Pass labelled data to --calib, or another --recipe.",
        )
    calibrations = {
        labelled: replace(
            calibrate(
                opened,
                by_labels if labelled else calibration,
                scoring,
                task=task_named(calib) or known,
                labelled=labelled,
            ),
            source=Source(name=calibration.name, sha256=calibration.sha256),  # one for all recipes
        )
        for labelled in {recipe.needs_labels for recipe in chosen.values()}
    }
    return run_sweep(
        opened,
        known,
        samples,
        {name: calibrations[recipe.needs_labels] for name, recipe in chosen.items()},
        Path(output),
        options=options,
        scoring=scoring,
        evaluation=evaluation,
        resume=resume,
        tell=progress,
        report=report,
    )
