"""The Python API: one function a stage, each taking and returning what the command line reads and writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from torch import nn

from optin_cli import __version__
from optin_cli.api_publish import Report, export, report
from optin_cli.api_sweep import sweep
from optin_cli.artifacts import Evaluation, LatencyTable, Manifest, Mask, Profile, Refit, Source
from optin_cli.calibration import Note, calibrate, encode, read_samples
from optin_cli.card import write_measured
from optin_cli.checkpoint import Checkpoint, as_checkpoint
from optin_cli.costs import measure_costs
from optin_cli.differing import Difference, diff
from optin_cli.errors import UsageError
from optin_cli.evaluation import evaluate_checkpoint
from optin_cli.exported import as_evaluated, device_for
from optin_cli.files import sha256_of
from optin_cli.inputs import example_inputs, workload_length, workload_of
from optin_cli.latency import measure_table
from optin_cli.layouts import Layout
from optin_cli.options import CRITERIA, EvalOptions, ImageOptions, LatencyOptions, RefitOptions, ScoreOptions
from optin_cli.pruning import check_mask, prune_checkpoint
from optin_cli.refit import refit_model
from optin_cli.rescoring import score_in_rounds
from optin_cli.scores import Scores
from optin_cli.scoring import Progress, only_units
from optin_cli.scoring.tokens import check_units, score_tokens, token_state
from optin_cli.selection import Algorithm, Limits, make_mask
from optin_cli.stock_masks import stock_settings
from optin_cli.tasks import load_task, task_named
from optin_cli.token_exchange import exchange_tokens


def load(path: str | Path, *, device: str | None = None) -> nn.Module:
    """Load a cut (or uncut) checkpoint as a module in evaluation mode, running no code from its folder."""
    return as_checkpoint(path, device).model


def profile(checkpoint: Checkpoint | str | Path, *, seq_len: int | None = None) -> Profile:
    """What the whole model and each group's units cost."""
    checkpoint = as_checkpoint(checkpoint)
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


def profile_latency(
    checkpoint: Checkpoint | str | Path,
    *,
    seq_len: int | None = None,
    options: LatencyOptions | None = None,
    tell: Progress = lambda _done, _total, _what: None,
) -> LatencyTable:
    """What the whole model and each group's units cost in time on the checkpoint's device, for `search`."""
    opened, options = as_checkpoint(checkpoint), options or LatencyOptions()
    workload = workload_of(opened, workload_length(opened, seq_len), options.batch_size)
    return measure_table(opened, workload, options, tell=tell)


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
    note: Note = lambda _message: None,
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
    tokens = check_units(checkpoint, options)
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
            tell=progress,
            note=note,
            labelled=criterion.needs_labels,
        )
        task = task_named(calib)
        calibration = calibrate(checkpoint, samples, options, task=task, labelled=criterion.needs_labels)
    scores = score_in_rounds(
        checkpoint,
        calibration,
        options,
        seq_len=workload_length(checkpoint, seq_len),
        state=state,
        resume=resume,
        progress=progress,
    )
    if tokens is None or calibration is None:
        return scores
    state = None if state is None else token_state(state)
    scores = score_tokens(
        scores, checkpoint, calibration.exact_batches, options, state=state, resume=resume, progress=progress
    )
    return exchange_tokens(scores, checkpoint, calibration.batches, options, progress=progress)


def search(
    scores: Scores,
    *,
    keep_flops: float | None = None,
    keep_params: float | None = None,
    round_to: int = 1,
    minima: dict[str, int] | None = None,
    protect: Sequence[str] = (),
    layout: Layout = "ragged",
    keep_latency: float | None = None,
    latency_table: LatencyTable | None = None,
    algorithm: Algorithm = "exact",
    name: str = "scores",
) -> Mask:
    """The mask that loses least importance within the budgets (shares of the whole model, 0 to 1).

    Args:
        layout: "uniform" for the same number of units in every layer, which `prune` then writes as a folder that the
            library's own class loads.
        keep_latency: share of the time that `latency_table` measured.
    """
    limits = Limits(keep_flops, keep_params, round_to, minima, tuple(protect), layout, keep_latency, latency_table)
    source = None if latency_table is None else Source(name="latency", sha256=sha256_of(latency_table.dump().encode()))
    return make_mask(scores, scores.source(name), limits, algorithm=algorithm, table_source=source)


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
    note: Note = lambda _message: None,
) -> Manifest:
    """Cut a checkpoint by a mask into the folder `output`, certified by a reload in a fresh process.

    Args:
        calib, data: unlabelled texts or images to refit the consumers on; with neither, the kept weights stay.
        name: of the mask, for messages and the manifest.
        images, note: as for `score`.
    """
    source = Source(name=name, sha256=sha256_of(mask.dump().encode()))
    opened = as_checkpoint(checkpoint)
    if calib is None and data is None:
        return prune_checkpoint(opened, mask, source, Path(output), force=force, progress=progress)
    options = options or RefitOptions()
    check_mask(opened, mask, name)
    if stock_settings(opened, mask, name) is not None and options.add_bias:
        raise UsageError(
            "--add-bias gives layers a bias that the stock class has no place for, but the mask's layout is uniform.",
            hint="Leave out --add-bias.",
        )
    samples = read_samples(
        opened,
        calib,
        data=data,
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
        return refit_model(
            opened.model,
            model,
            opened.structure,
            kept,
            batches,
            ridge=options.ridge,
            add_bias=options.add_bias,
            tell=progress,
        )

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
    note: Note = lambda _message: None,
) -> Evaluation:
    """Task metric, agreement with `against`, size and speed; without task and data, size and speed alone.

    Args:
        checkpoint, against: also files that `export` wrote, which run in their own runtimes.
        images, note: as for `score`.
    """
    known = None if task is None else load_task(task)
    device = device_for(None, checkpoint, against)
    opened = as_evaluated(checkpoint, device)
    other = None if against is None else as_evaluated(against, device)
    chosen = None
    if task is not None or data is not None:
        chosen = read_samples(
            opened,
            None,
            task=known,
            data=data,
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


__all__ = [
    "Difference",
    "Report",
    "diff",
    "evaluate",
    "export",
    "load",
    "profile",
    "profile_latency",
    "prune",
    "report",
    "score",
    "search",
    "sweep",
    "write_measured",
]
