"""A checkpoint, recipes and budgets in; what each recipe loses at each budget, or the smallest model within a loss.

A recipe prepares (scores) once; each budget is then decided, cut, adjusted and evaluated in memory against the
original. The record is written after every point, so that an interrupted sweep can go on.
"""

from __future__ import annotations

import functools
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from optin_cli.artifacts.base import Source, Totals, parse
from optin_cli.artifacts.costs import GroupCost
from optin_cli.artifacts.sweep import Sweep, SweepBaseline, SweepPoint
from optin_cli.checkpoints.batches import read_samples, require_fit, require_loss
from optin_cli.checkpoints.checkpoint import Checkpoint, as_checkpoint
from optin_cli.checkpoints.folders import MANIFEST
from optin_cli.checkpoints.synthetic_inputs import example_inputs, workload_of
from optin_cli.data.batch import Batch
from optin_cli.data.load import AnySamples
from optin_cli.data.sources import WHOLE, resolve_source
from optin_cli.errors import ArtifactError, BudgetError, DataError, GateError, UsageError, did_you_mean
from optin_cli.evaluation.evaluate import evaluate_checkpoint, predict_samples
from optin_cli.evaluation.metrics import find_metric
from optin_cli.evaluation.predict import Prediction
from optin_cli.files import check_output, read_bytes, write_text
from optin_cli.model.costs import measure_costs
from optin_cli.options.evaluation import EvalOptions
from optin_cli.options.images import ImageOptions
from optin_cli.options.scoring import ScoreOptions
from optin_cli.options.sweep import SweepOptions
from optin_cli.progress import SILENT, Part, Progress
from optin_cli.recipes.recipe import Prepared, Recipe, Setting
from optin_cli.recipes.registry import recipes
from optin_cli.scoring.calibration import Calibration, calibrate
from optin_cli.search.costs import Costs
from optin_cli.sweeping.bisection import PLACES, find_smallest
from optin_cli.sweeping.candidate import (
    Candidate,
    candidate_mask,
    make_candidate,
    measure_candidate,
    save_candidate,
    scoring_constants,
)
from optin_cli.sweeping.plots import write_pictures
from optin_cli.tasks.registry import load_task, task_named
from optin_cli.tasks.schema import Task
from optin_cli.version import __version__

RESULT = "sweep.json"


PARTIAL = "sweep.partial.json"


MODEL = "model"


MASK = "mask.json"


def find_recipe(name: str) -> Recipe:
    """The recipe of that name (UsageError if there is none)."""
    known = recipes()
    if name not in known:
        raise UsageError(f"Unknown recipe {name!r}.", hint=did_you_mean(name, known))
    return known[name]


def check_folder(folder: Path, *, resume: bool, force: bool) -> None:
    """Refuse a folder that a sweep may not write into, before any time is spent."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; a sweep writes a folder.", hint="Pass another -o FOLDER.")
    if (folder / PARTIAL).exists() and not (resume or force):
        hint = "Pass --resume to go on, or --force to start over."
        raise UsageError(f"{folder} holds an interrupted sweep.", hint=hint)
    check_output(folder, force=force or resume, folder=True)


@dataclass
class Bench:
    """Measures points and keeps the record of them in `folder`; `known` are those of an interrupted run."""

    settings: Mapping[str, Setting]
    task: Task
    samples: AnySamples
    original: Callable[[], Prediction]
    options: EvalOptions
    sweep: Sweep
    known: Sequence[SweepPoint]
    folder: Path
    progress: Progress
    prepared: dict[str, tuple[Prepared, float]] = field(default_factory=dict)

    def make(self, recipe: str, share: float) -> Candidate:
        """The model of a recipe at a budget; the recipe is prepared at its first."""
        if recipe not in self.prepared:
            begin = time.perf_counter()
            prepared = find_recipe(recipe).prepare(self.settings[recipe])
            self.prepared[recipe] = prepared, time.perf_counter() - begin
        return make_candidate(recipe, self.prepared[recipe][0], self.settings[recipe], share)

    def measure(self, recipe: str, share: float) -> tuple[SweepPoint, Candidate | None]:
        """A point, recorded on disk, and its model unless an interrupted run measured it."""
        point, candidate = next((p for p in self.known if (p.recipe, p.asked) == (recipe, share)), None), None
        if point is None:
            candidate = self.make(recipe, share)
            seconds = self.prepared[recipe][1]
            point = measure_candidate(
                candidate,
                self.settings[recipe],
                self.task,
                self.samples,
                self.original(),
                self.options,
                seconds,
                self.progress,
            )
        self.sweep = self.sweep.model_copy(update={"points": [*self.sweep.points, point]})
        points = [*self.sweep.points, *(p for p in self.known if p not in self.sweep.points)]
        self.folder.mkdir(exist_ok=True)
        write_text(self.folder / PARTIAL, self.sweep.model_copy(update={"points": points}).dump(), force=True)
        return point, candidate

    def finish(self) -> Sweep:
        """Write the result and its pictures."""
        write_pictures(self.sweep, self.folder)
        write_text(self.folder / RESULT, self.sweep.dump(), force=True)
        (self.folder / PARTIAL).unlink(missing_ok=True)
        return self.sweep


def run_sweep(
    checkpoint: Checkpoint,
    task: Task,
    samples: AnySamples,
    calibrations: Mapping[str, Calibration],
    folder: Path,
    *,
    options: SweepOptions,
    scoring: ScoreOptions,
    evaluation: EvalOptions,
    resume: bool = False,
    progress: Progress = SILENT,
    report: Callable[[SweepPoint], None] = lambda _point: None,
) -> Sweep:
    """Measure every recipe at every budget, or bisect for the allowed drop.

    Args:
        calibrations: by recipe.
        folder: gets sweep.json and pictures, and with `options.max_drop` model/ and mask.json; see `check_folder`.
        evaluation: its `seq_len` is the one that MACs are stated for.
        report: told every point as soon as it is there.

    Raises:
        BudgetError: a budget that no mask can meet.
        ArtifactError: `resume` of a sweep with other options or inputs.
    """
    workload = workload_of(checkpoint, evaluation.seq_len)
    inputs = example_inputs(checkpoint, workload)
    totals, costs = measure_costs(checkpoint.model, checkpoint.structure, inputs, checkpoint.weight_bytes)
    smallest = _smallest_share(costs, totals, options.keep_flops or ())
    settings = {
        recipe: Setting(
            checkpoint,
            calibration,
            scoring,
            evaluation.seq_len,
            options.ridge,
            Part(progress, label=f"{recipe}: "),
        )
        for recipe, calibration in calibrations.items()
    }
    original = functools.cache(lambda: predict_samples(checkpoint, samples, task, evaluation, progress))
    metric = task.metrics[0]
    begin = functools.partial(
        Sweep,
        optin_version=__version__,
        options={
            **options.asked(),
            "refit_ridge": options.ridge,
            **scoring_constants(scoring),
            **{f"eval_{key}": value for key, value in asdict(evaluation).items()},
        },
        inputs={
            **checkpoint.sources,
            "calibration": calibrations[options.recipes[0]].source,
            "data": Source(name=samples.name, sha256=samples.sha256),
        },
        task=task.name,
        split=samples.split,
        samples=len(samples),
        metric=metric,
        higher_is_better=find_metric(metric).higher_is_better,
        workload=workload,
        points=[],
    )
    earlier = _earlier(folder) if resume else None
    if earlier is not None:
        sweep = begin(baseline=earlier.baseline)
        _require_same(earlier, sweep, options, totals, folder)
    else:
        measured = evaluate_checkpoint(checkpoint, samples, task=task, mine=original(), options=evaluation)
        value, error = original().values[metric], original().error
        sweep = begin(
            baseline=SweepBaseline(value=value, standard_error=error, totals=totals, latency=measured.latency)
        )
    known = [] if earlier is None else earlier.points
    bench = Bench(settings, task, samples, original, evaluation, sweep, known, folder, progress)
    if options.max_drop is not None:
        _bisect(bench, options.recipes[0], options.max_drop, smallest, options.evaluations, costs, report)
    for recipe in options.recipes:
        for share in options.keep_flops or ():
            report(bench.measure(recipe, share)[0])
    if bench.sweep.chosen is None and (folder / MODEL / MANIFEST).is_file():  # of an earlier sweep in this folder
        shutil.rmtree(folder / MODEL)
        (folder / MASK).unlink(missing_ok=True)
    return bench.finish()


def _bisect(
    bench: Bench,
    recipe: str,
    most: float,
    smallest: float,
    evaluations: int,
    costs: Mapping[str, GroupCost],
    report: Callable[[SweepPoint], None],
) -> None:
    """Find the smallest model within the drop, mark its point as chosen and write it."""
    best: Candidate | None = None

    def within(share: float) -> bool:
        nonlocal best
        point, candidate = bench.measure(recipe, share)
        report(point)
        fits = point.drop <= most
        best = candidate if fits else best
        return fits

    found = find_smallest(within, smallest, evaluations=evaluations)
    if found is None:
        return
    candidate = best or bench.make(recipe, found)
    setting, sweep = bench.settings[recipe], bench.sweep
    mask = candidate_mask(candidate, setting, costs, sweep.baseline.totals, sweep.workload)
    save_candidate(candidate, setting, mask, bench.folder / MODEL, bench.folder / MASK, bench.progress)
    chosen = [point.asked for point in sweep.points].index(found)
    bench.sweep = sweep.model_copy(update={"chosen": chosen})


def require_chosen(sweep: Sweep) -> SweepPoint:
    """The point within the allowed drop (GateError if there is none)."""
    if sweep.chosen is not None:
        return sweep.points[sweep.chosen]
    least = min(sweep.points, key=lambda p: p.drop)
    spread = "" if least.standard_error is None else f" (standard error {least.standard_error:.4f})"
    raise GateError(
        f"None of {len(sweep.points)} models keeps the drop of {sweep.metric} within {sweep.options['max_drop']}: "
        f"the smallest drop seen is {least.drop:.4f}{spread}, at {least.macs_ratio:.4f} of the MACs.",
        hint="Allow more with --max-drop, evaluate more models with --evaluations, or calibrate on more --samples.",
    )


def _smallest_share(costs: Mapping[str, GroupCost], totals: Totals, asked: Sequence[float]) -> float:
    least: float = Costs(costs, totals).remaining({name: range(c.least) for name, c in costs.items()})["macs"]
    rounded: float = min(1.0, math.ceil(least * 10**PLACES - 1e-8) / 10**PLACES)
    if asked and min(asked) < least - 1e-12:
        raise BudgetError(
            f"A budget of {min(asked):.4g} of the macs cannot be met: the smallest reachable share is {rounded:.4f}."
        )
    return rounded


def _earlier(folder: Path) -> Sweep | None:
    """What an interrupted run, else a finished one, left."""
    path = next((folder / name for name in (PARTIAL, RESULT) if (folder / name).exists()), None)
    return None if path is None else parse(Sweep, read_bytes(path, "sweep"), str(path))


def _require_same(earlier: Sweep, now: Sweep, options: SweepOptions, totals: Totals, folder: Path) -> None:
    """Refuse to go on with points that were measured otherwise; which points are asked for may differ."""
    keys = {*earlier.options, *now.options} - set(options.asked())
    pairs: list[tuple[str, object, object]] = [
        (f"--{key.removeprefix('eval_')}".replace("_", "-"), earlier.options.get(key), now.options.get(key))
        for key in sorted(keys)
    ]
    roles = dict.fromkeys([*now.inputs, *earlier.inputs])
    pairs += [(role, earlier.inputs.get(role), now.inputs.get(role)) for role in roles]
    pairs += [
        ("optin version", earlier.optin_version, now.optin_version),
        ("task", earlier.task, now.task),
        ("split", earlier.split, now.split),
        ("metric", earlier.metric, now.metric),
        ("workload", earlier.workload, now.workload),
        ("size of the original", earlier.baseline.totals, totals),
    ]
    other = list(dict.fromkeys(name for name, old, new in pairs if old != new))
    if other:
        raise ArtifactError(
            f"The sweep in {folder} was made with another {', another '.join(other)}.",
            hint="Repeat the interrupted command, or pass --force instead of --resume to start over.",
        )


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
    progress: Progress = SILENT,
    report: Callable[[SweepPoint], None] = lambda _point: None,
    images: ImageOptions | None = None,
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
    require_fit(opened, known)
    shared = calib_data is None and calib == task and data is not None and Path(data).is_dir()
    calib_data = data if shared else calib_data
    calib_task, _ = resolve_source(calib, None, None if calib_data is None else Path(calib_data), opened.modality)
    needy = [name for name, recipe in chosen.items() if recipe.needs_labels]
    if needy:
        require_loss(
            opened,
            calib_task or known,
            data=calib,
            needed_by=f"The recipe {needy[0]}",
            hint="Pass another --recipe, or labelled data of the model's own task to --calib.",
        )
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
        progress=progress,
    )
    if not samples.labelled:
        raise DataError(f"{samples.name} has no labels to measure {known.metrics[0]} by.")

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
            progress=progress,
            labelled=labelled,
        )

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
    calibrations: dict[bool, Calibration] = {}
    decoded: Sequence[Batch] = ()
    for labelled in sorted({recipe.needs_labels for recipe in chosen.values()}):
        found = calibrate(
            opened,
            by_labels if labelled else calibration,
            scoring,
            task=task_named(calib) or known,
            labelled=labelled,
            decoded=decoded if by_labels is calibration else (),
        )
        decoded = found.batches
        one_for_all = Source(name=calibration.name, sha256=calibration.sha256)
        calibrations[labelled] = replace(found, source=one_for_all)
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
        progress=progress,
        report=report,
    )
