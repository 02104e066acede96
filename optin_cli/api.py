"""The Python API: one function a stage, each taking and returning what the command line reads and writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from torch import nn

from optin_cli import __version__
from optin_cli.artifacts import Evaluation, Manifest, Mask, Profile, Refit, Source, Sweep, SweepPoint
from optin_cli.calibration import Note, calibrate, encode, read_samples
from optin_cli.checkpoint import Checkpoint, load_checkpoint
from optin_cli.costs import measure_costs
from optin_cli.data.batches import reserved_positions
from optin_cli.data.rows import WHOLE
from optin_cli.errors import DataError, UsageError
from optin_cli.evaluation import evaluate_checkpoint
from optin_cli.files import sha256_of
from optin_cli.inputs import example_inputs, workload_of
from optin_cli.options import CRITERIA, EvalOptions, ImageOptions, RefitOptions, ScoreOptions, SweepOptions
from optin_cli.pruning import check_mask, prune_checkpoint
from optin_cli.refit import refit_model
from optin_cli.scores import Scores
from optin_cli.scoring import Progress, score_checkpoint
from optin_cli.selection import Algorithm, Limits, make_mask
from optin_cli.sweeping import check_folder, find_recipe, run_sweep
from optin_cli.tasks import Task, load_task

DEFAULT_SEQ_LEN = 128


def _silent(_message: str) -> None:
    """Tell nobody."""


def load(path: str | Path, *, device: str | None = None) -> nn.Module:
    """Load a cut (or uncut) checkpoint as a module in evaluation mode, running no code from its folder."""
    return _opened(path, device).model


def _opened(checkpoint: Checkpoint | str | Path, device: str | None = None) -> Checkpoint:
    return checkpoint if isinstance(checkpoint, Checkpoint) else load_checkpoint(checkpoint, device=device)


def _path(data: str | Path | None) -> Path | None:
    return None if data is None else Path(data)


def workload_length(checkpoint: Checkpoint, asked: int | None) -> int | None:
    """Sequence length that costs are stated for: `asked`, or 128, within what the model's positions hold.

    None for image models, whose inputs have one size.
    """
    if checkpoint.image is not None:
        if asked is None:
            return None
        raise UsageError(
            f"{checkpoint.name} takes images of {workload_of(checkpoint, None).shape}, which have no sequence length.",
            hint="Leave out --seq-len.",
        )
    rows = getattr(checkpoint.config, "max_position_embeddings", None)
    most = int(rows) - reserved_positions(checkpoint.model, int(rows)) if rows else DEFAULT_SEQ_LEN
    if asked is None:
        return min(DEFAULT_SEQ_LEN, most)
    if not 1 <= asked <= most:
        raise UsageError(f"The sequence length {asked} is not within 1 to {most}, what {checkpoint.name} holds.")
    return asked


def profile(checkpoint: Checkpoint | str | Path, *, seq_len: int | None = None) -> Profile:
    """What the whole model and each group's units cost."""
    checkpoint = _opened(checkpoint)
    workload = workload_of(checkpoint, workload_length(checkpoint, seq_len))
    totals, groups = measure_costs(
        checkpoint.model, checkpoint.structure, example_inputs(checkpoint, workload), checkpoint.weight_bytes
    )
    return Profile(
        optin_version=__version__,
        options={},
        inputs={"checkpoint": checkpoint.source},
        family=checkpoint.structure.family,
        architecture=checkpoint.model_class,
        workload=workload,
        totals=totals,
        groups=groups,
    )


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
    progress: Progress | None = None,
    images: ImageOptions | None = None,
    note: Note = _silent,
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
    checkpoint = _opened(checkpoint)
    calibration = None
    if criterion.needs_data:
        samples = read_samples(
            checkpoint,
            calib,
            data=_path(data),
            split="calibration",
            columns=columns,
            label_column=label_column,
            limit=options.samples,
            seed=options.seed,
            images=images,
            tell=progress,
            note=note,
        )
        task = task_named(calib)
        calibration = calibrate(checkpoint, samples, options, task=task, labelled=criterion.needs_labels)
    return score_checkpoint(
        checkpoint,
        calibration,
        options,
        seq_len=workload_length(checkpoint, seq_len),
        state=state,
        resume=resume,
        progress=progress,
    )


def task_named(source: str | None) -> Task | None:
    """The task of that name, None for a path or nothing."""
    return None if source is None or Path(source).exists() else load_task(source)


def search(
    scores: Scores,
    *,
    keep_flops: float | None = None,
    keep_params: float | None = None,
    round_to: int = 1,
    minima: dict[str, int] | None = None,
    protect: Sequence[str] = (),
    algorithm: Algorithm = "exact",
    name: str = "scores",
) -> Mask:
    """The mask that loses least importance within the budgets (shares of the whole model, 0 to 1)."""
    limits = Limits(keep_flops, keep_params, round_to, minima, tuple(protect))
    return make_mask(scores, scores.source(name), limits, algorithm=algorithm)


def prune(
    checkpoint: Checkpoint | str | Path,
    mask: Mask,
    output: str | Path,
    *,
    calib: str | None = None,
    data: str | Path | None = None,
    columns: Sequence[str] | None = None,
    options: RefitOptions | None = None,
    force: bool = False,
    name: str = "mask",
    progress: Progress = lambda _done, _total, _what: None,
    images: ImageOptions | None = None,
    note: Note = _silent,
) -> Manifest:
    """Cut a checkpoint by a mask into the folder `output`, certified by a reload in a fresh process.

    Args:
        calib, data: unlabelled texts or images to refit the consumers on; with neither, the kept weights stay.
        name: of the mask, for messages and the manifest.
        images, note: as for `score`.
    """
    source = Source(name=name, sha256=sha256_of(mask.dump().encode()))
    opened = _opened(checkpoint)
    if calib is None and data is None:
        return prune_checkpoint(opened, mask, source, Path(output), force=force, progress=progress)
    options = options or RefitOptions()
    check_mask(opened, mask, name)
    samples = read_samples(
        opened,
        calib,
        data=_path(data),
        split="calibration",
        columns=columns,
        limit=options.samples,
        seed=options.seed,
        images=images,
        tell=progress,
        note=note,
    )
    batches = [*encode(opened, samples, batch_size=options.batch_size, max_length=options.max_length)]
    kept = {group: part.kept for group, part in mask.groups.items()}

    def adjust(model: nn.Module) -> dict[str, Refit]:
        return refit_model(opened.model, model, opened.structure, kept, batches, ridge=options.ridge, tell=progress)

    return prune_checkpoint(
        opened,
        mask,
        source,
        Path(output),
        adjust=adjust,
        adjusted_with=Source(name=samples.name, sha256=samples.sha256),
        options={f"refit_{key}": value for key, value in asdict(options).items()},
        force=force,
        progress=progress,
    )


def evaluate(
    checkpoint: Checkpoint | str | Path,
    task: str | None = None,
    *,
    data: str | Path | None = None,
    columns: Sequence[str] | None = None,
    label_column: str | None = None,
    samples: int | None = None,
    seed: int = 0,
    against: Checkpoint | str | Path | None = None,
    options: EvalOptions | None = None,
    tell: Callable[[float, float, str], None] | None = None,
    images: ImageOptions | None = None,
    note: Note = _silent,
) -> Evaluation:
    """Task metric, agreement with `against`, size and speed; without task and data, size and speed alone.

    Args:
        images, note: as for `score`.
    """
    known = None if task is None else load_task(task)
    opened = _opened(checkpoint)
    other = None if against is None else _opened(against)
    chosen = None
    if task is not None or data is not None:
        chosen = read_samples(
            opened,
            None,
            task=known,
            data=_path(data),
            split="evaluation",
            columns=columns,
            label_column=label_column,
            limit=samples,
            seed=seed,
            images=images,
            tell=tell,
            note=note,
        )
    return evaluate_checkpoint(opened, chosen, task=known, against=other, options=options, tell=tell)


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
    note: Note = _silent,
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
    opened = _opened(checkpoint)
    samples = read_samples(
        opened,
        None,
        task=known,
        data=_path(data),
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
    calibration = read_samples(
        opened,
        calib,
        data=_path(calib_data),
        split="calibration",
        columns=columns,
        label_column=label_column,
        limit=scoring.samples,
        seed=scoring.seed,
        images=images,
        tell=progress,
        note=note,
    )
    if shared and calibration.split == WHOLE:
        raise UsageError(
            f"{data} has no splits, so the model would be scored on the very samples that it is evaluated on.",
            hint="Name other samples with --calib PATH, or a folder with train and validation in it with --data.",
        )
    if calibration.labels is None and (needy := [name for name, recipe in chosen.items() if recipe.needs_labels]):
        raise DataError(
            f"The recipe {needy[0]} needs labels, and the calibration data {calibration.name} has none.",
            hint="Pass labelled data to --calib, or another --recipe.",
        )
    calibrations = {
        labelled: calibrate(opened, calibration, scoring, task=task_named(calib) or known, labelled=labelled)
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


__all__ = ["evaluate", "load", "profile", "prune", "score", "search", "sweep"]
