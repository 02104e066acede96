"""Sweep recipes over budgets: what each loses at each, or the smallest model within an allowed drop.

A recipe prepares (scores) once; at each budget its model is pruned, adjusted and evaluated in memory against the
original. The record is written after every point, so that an interrupted sweep can go on.
"""

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from optin_cli.artifacts.base import Source, Totals, parse
from optin_cli.artifacts.scores import Scores
from optin_cli.artifacts.sweep import PARTIAL, RESULT, Sweep, SweepBaseline, SweepPoint
from optin_cli.artifacts.together import write_together
from optin_cli.checkpoints.checkpoint import Checkpoint, as_checkpoint
from optin_cli.checkpoints.checks import choose_task, require_fit, require_loss
from optin_cli.data.batch import Batch
from optin_cli.data.load import is_measurable, source_of
from optin_cli.data.sources import WHOLE
from optin_cli.data.spec import DataSpec, require_data
from optin_cli.errors import ArtifactError, BudgetError, DataError, GateError, UsageError
from optin_cli.evaluation.evaluate import Exam, Predicted, fitted, measure, predicted, remarks
from optin_cli.evaluation.gate import Drop, Gate
from optin_cli.evaluation.metrics import find_metric
from optin_cli.files import check_output, read_bytes, write_text
from optin_cli.model.arithmetic import reproducible
from optin_cli.model.costs import measure_costs
from optin_cli.options.common import MEASURED
from optin_cli.options.sweep import SweepOptions
from optin_cli.progress import SILENT, Progress, Steps
from optin_cli.recipes.recipe import Prepared, Setting
from optin_cli.recipes.registry import recipes
from optin_cli.reporting.frontier import draw_frontier
from optin_cli.scoring.calibration import Calibration, calibrate
from optin_cli.searching.costs import Costs
from optin_cli.sweeping.bisection import PLACES, find_smallest
from optin_cli.sweeping.candidate import Candidate, make_candidate, measure_candidate, scoring_constants
from optin_cli.sweeping.keeping import Keeper
from optin_cli.sweeping.plots import PICTURE
from optin_cli.tasks.registry import load_task
from optin_cli.tasks.schema import Task
from optin_cli.version import __version__

PREPARING, MAKING, EVALUATING, SAVING = 4.0, 1.5, 1.0, 1.0
"""Time that steps are expected to take, relative to evaluating a model: a recipe's scores, a model, its folder."""


def sweep(
    checkpoint: Checkpoint | str | Path,
    task: str | None,
    calib: DataSpec | str | Path,
    output: str | Path,
    options: SweepOptions,
    *,
    data: DataSpec | str | Path | None = None,
    resume: bool = False,
    force: bool = False,
    progress: Progress = SILENT,
    report: Callable[[SweepPoint], None] = lambda _point: None,
) -> Sweep:
    """Score once, then prune and evaluate at every budget; or find the smallest model within an allowed drop.

    Args:
        task: names the metric; None for what the model is for, on the local samples of `data`.
        calib: a task name, or a file or folder of texts or images; only some recipes need labels.
        output: folder for sweep.json, a picture, the recipes' scores, the mask of every point in masks/ and, with
            `options.keep_models`, the models in models/; with `options.max_drop`, model/ and mask.json of the smallest.
            If no model is within the drop, the result has nothing `chosen`.
        data: what to evaluate on, in place of the task's dataset; a folder also serves calibration by the same task.
        resume: take the points that an earlier sweep in `output` measured with the same options and inputs.
        report: called with every point as soon as it is measured.

    Raises:
        OptinError: bad data, a budget that no mask can meet, or options that contradict each other.
    """
    folder, evaluating = Path(output), DataSpec.of(data)
    if task is not None:
        require_data(load_task(task), evaluating.local)
    needy = [name for name in options.recipes if recipes()[name].needs_labels]
    check_folder(folder, resume=resume, force=force)
    opened = as_checkpoint(checkpoint)
    known = choose_task(opened, task, evaluating)
    if known is None:
        raise UsageError(
            f"What {opened.name} is to be measured by is not clear.",
            hint="Pass --task NAME, or labelled samples of what the model is for with --data PATH.",
        )
    require_fit(opened, known)
    options = replace(options, evaluation=fitted(options.evaluation, opened))
    spec = evaluating.evaluating(options.evaluation, known)
    given = DataSpec.of(calib)
    calibrating = _calibration_spec(given, spec)
    calibration_task, _ = calibrating.resolve(opened.input.kind)
    if needy:
        require_loss(
            opened,
            calibration_task or known,
            data=str(calibrating.source or calibrating.path),
            needed_by=f"The recipe {needy[0]}",
            hint="Pass another --recipe, or labelled data of the model's own task to --calib.",
        )
    samples = opened.input.load_samples(spec, progress)
    if not is_measurable(samples, known):
        raise DataError(f"{samples.name} has no labels to measure {known.metrics[0]} by.")
    calibrations = _calibrations(opened, calibrating, known, needy, options, progress, shared=calibrating is not given)
    workload = opened.input.workload(options.evaluation.seq_len)
    inputs = opened.input.example(workload)
    totals, groups = measure_costs(opened.model, opened.structure, inputs, opened.weight_bytes)
    costs = Costs(groups, totals)
    smallest = _smallest_share(costs, options.keep_flops or ())
    steps = Steps(progress, _weight(options))
    exam = Exam(samples, known, options.evaluation, steps, source_of(samples, spec))
    original = functools.cache(lambda: predicted(opened, exam))
    earlier = _earlier(folder) if resume else None
    with steps.begin(EVALUATING, "original: "):
        baseline = _baseline(original(), exam, totals) if earlier is None else earlier.baseline
    calibration = calibrations[options.recipes[0]].source
    record = _record(opened, exam, known, calibration, options, baseline)
    if earlier is not None:
        _require_same(earlier, record, options, totals, folder)
    settings = {
        name: Setting(opened, found, costs, options.scoring, workload.seq_len, options.ridge, steps)
        for name, found in calibrations.items()
    }
    keeper = Keeper(folder, options.keep_models, workload)
    known_points = [] if earlier is None else earlier.points
    bench = Bench(settings, exam, original, record, known_points, keeper, report, steps)
    if options.max_drop is not None:
        _bisect(bench, options, smallest)
    for recipe in options.recipes:
        for share in options.keep_flops or ():
            bench.measure(recipe, share)
    return bench.finish()


def _weight(options: SweepOptions) -> float:
    """Of all steps of a sweep; a search by a drop may need fewer."""
    points = len(options.recipes) * len(options.keep_flops or ())
    points += options.evaluations if options.max_drop is not None else 0
    saving = 0.0 if options.max_drop is None else SAVING
    return EVALUATING + len(options.recipes) * PREPARING + points * (MAKING + EVALUATING) + saving


def _record(
    checkpoint: Checkpoint,
    exam: Exam,
    task: Task,
    calibration: Source,
    options: SweepOptions,
    baseline: SweepBaseline,
) -> Sweep:
    """The record of a sweep without any points."""
    samples, data = exam.samples, exam.source
    assert samples is not None and data is not None
    metric = next((name for name in task.metrics if name in baseline.metrics), task.metrics[0])
    return Sweep(
        optin_version=__version__,
        options={
            **options.asked(),
            "refit_ridge": options.ridge,
            **scoring_constants(options.scoring),
            **{f"eval_{key}": value for key, value in options.evaluation.recorded().items()},
        },
        inputs={**checkpoint.sources, "calibration": calibration, "data": data},
        task=task.name,
        split=samples.split,
        samples=len(samples),
        metric=metric,
        higher_is_better=find_metric(metric).higher_is_better,
        relative_drop=find_metric(metric).relative,
        workload=checkpoint.input.workload(options.evaluation.seq_len),
        baseline=baseline,
        points=[],
    )


def _calibration_spec(spec: DataSpec, evaluated: DataSpec) -> DataSpec:
    """The calibration data; that of the task that is evaluated lies in the folder that is evaluated on, if any."""
    local = evaluated.local
    same_task = evaluated.known is not None and spec.source == evaluated.known.name
    return replace(spec, path=local) if same_task and spec.path is None and local and local.is_dir() else spec


def _calibrations(
    checkpoint: Checkpoint,
    spec: DataSpec,
    task: Task,
    needy: Sequence[str],
    options: SweepOptions,
    progress: Progress,
    *,
    shared: bool,
) -> dict[str, Calibration]:
    """Calibrations by recipe, labelled if `needy`. shared: models are evaluated on the folder, which needs splits."""
    scoring = options.scoring

    length = scoring.max_length or options.evaluation.seq_len
    wanted = spec.calibrating(scoring.samples, scoring.seed, length=length)
    samples = by_labels = checkpoint.input.load_samples(wanted, progress)
    if needy and samples.labels is None:
        # Labels of texts are read where they are needed alone; texts that a model reads one at a time then are pairs.
        by_labels = checkpoint.input.load_samples(replace(wanted, labelled=True), progress)
    source = source_of(samples, wanted)
    if shared and samples.split == WHOLE:
        raise UsageError(
            f"{spec.path} has no splits, so the model would be scored on the very samples that it is evaluated on.",
            hint="Name other samples with --calib PATH, or a folder with train and validation in it with --data.",
        )
    if by_labels.labels is None and needy:
        raise DataError(
            f"The recipe {needy[0]} needs labels, and the calibration data {samples.name} has none.",
            hint="Pass labelled data to --calib, or another --recipe.",
        )
    made: dict[bool, Calibration] = {}
    decoded: Sequence[Batch] = ()
    for labelled in sorted({name in needy for name in options.recipes}):
        found = calibrate(
            checkpoint,
            by_labels if labelled else samples,
            scoring,
            task=spec.task or task,
            labelled=labelled,
            decoded=decoded if by_labels is samples else (),
        )
        decoded = found.batches
        made[labelled] = replace(found, source=source)  # one for all recipes
    return {name: made[name in needy] for name in options.recipes}


def _baseline(original: Predicted, exam: Exam, totals: Totals) -> SweepBaseline:
    measured = measure(original, None, exam)
    if measured.metric is None:
        raise DataError(f"{measured.inputs['data'].name} has no labels to measure {original.checkpoint.name} by.")
    for note in remarks(measured, original.checkpoint):
        exam.progress.note(note)
    return SweepBaseline(
        value=measured.metric.value,
        metrics=measured.metrics,
        standard_error=measured.standard_error,
        totals=totals,
        latency=measured.latency,
    )


def check_folder(folder: Path, *, resume: bool, force: bool) -> None:
    """Refuse a folder that a sweep may not write into, before any time is spent."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; a sweep writes a folder.", hint="Pass another -o FOLDER.")
    if (folder / PARTIAL).exists() and not (resume or force):
        hint = "Pass --resume to go on, or --force to start over."
        raise UsageError(f"{folder} holds an interrupted sweep.", hint=hint)
    check_output(folder, force=force or resume, folder=True, into=True)


@dataclass
class Bench:
    """Measures points and keeps the record of them; `known` are those of an interrupted run, whose scores serve too.

    prepared: by recipe, what decides, and the seconds that took.
    """

    settings: Mapping[str, Setting]
    exam: Exam
    original: Callable[[], Predicted]
    sweep: Sweep
    known: Sequence[SweepPoint]
    keeper: Keeper
    report: Callable[[SweepPoint], None]
    steps: Steps
    prepared: dict[str, tuple[Prepared, float]] = field(default_factory=dict)

    def make(self, recipe: str, share: float) -> Candidate:
        """The model of a recipe at a budget; the recipe is prepared at its first."""
        if recipe not in self.prepared:
            begin, took = time.perf_counter(), [p.prepare_seconds for p in self.known if p.recipe == recipe]
            with self.steps.begin(PREPARING, f"{recipe}: "), reproducible():
                scores = self.keeper.scores(recipe) if took else None
                prepared = recipes()[recipe].prepare(replace(self.settings[recipe], scores=scores))
            taken_up = scores is not None and prepared.scores is scores
            self.prepared[recipe] = prepared, took[0] if taken_up else time.perf_counter() - begin
        with self.steps.begin(MAKING, f"{recipe} at {share:g}: "):
            return make_candidate(recipe, self.prepared[recipe][0], self.settings[recipe], share)

    def measure(self, recipe: str, share: float) -> tuple[SweepPoint, Candidate | None]:
        """A point, recorded on disk and reported, and its model unless an interrupted run measured it."""
        point, candidate = next((p for p in self.known if (p.recipe, p.asked) == (recipe, share)), None), None
        if point is None:
            candidate = self.make(recipe, share)
            seconds = self.prepared[recipe][1]
            with self.steps.begin(EVALUATING, f"{recipe} at {share:g}: "):
                point = measure_candidate(candidate, self.settings[recipe], self.exam, self.original(), seconds)
        if candidate is not None or self.keeper.lacks(recipe, share):
            candidate = candidate or self.make(recipe, share)
            with self.steps.begin(0.0, f"{recipe} at {share:g}: "):
                self.keeper.keep(candidate, *self._kept(recipe))
        self.sweep = self.sweep.model_copy(update={"points": [*self.sweep.points, point]})
        points = [*self.sweep.points, *(p for p in self.known if p not in self.sweep.points)]
        write_text(self.keeper.folder / PARTIAL, self.sweep.model_copy(update={"points": points}).dump(), force=True)
        self.report(point)
        return point, candidate

    def finish(self) -> Sweep:
        """Write the result and its picture, and remove what an earlier sweep left in the folder."""
        folder, points = self.keeper.folder, {(point.recipe, point.asked) for point in self.sweep.points}
        self.keeper.clear(points, chosen=self.sweep.chosen is not None)
        write_together({folder / PICTURE: draw_frontier(self.sweep), folder / RESULT: self.sweep.dump()}, force=True)
        (folder / PARTIAL).unlink(missing_ok=True)
        return self.sweep

    def choose(self, recipe: str, share: float, candidate: Candidate | None) -> None:
        """Write the model of a point, which the sweep chose. candidate: that model, None if it is to be made again."""
        candidate = candidate or self.make(recipe, share)
        with self.steps.begin(SAVING, f"{recipe} at {share:g}: "):
            self.keeper.choose(candidate, *self._kept(recipe))
        chosen = [(point.recipe, point.asked) for point in self.sweep.points].index((recipe, share))
        self.sweep = self.sweep.model_copy(update={"chosen": chosen})

    def _kept(self, recipe: str) -> tuple[Setting, Scores | None, Progress]:
        """How models of a recipe are made, its scores, and who is told."""
        return self.settings[recipe], self.prepared[recipe][0].scores, self.exam.progress


def _bisect(bench: Bench, options: SweepOptions, smallest: float) -> None:
    """Find the smallest model within the drop, mark its point as chosen and write it."""
    best: Candidate | None = None
    recipe, gate = options.recipes[0], gate_of(options)

    def within(share: float) -> bool:
        nonlocal best
        point, candidate = bench.measure(recipe, share)
        fits = gate.passes(drop_of(bench.sweep, point))
        best = candidate if fits else best
        return fits

    found = find_smallest(within, smallest, evaluations=options.evaluations)
    if found is None:
        return
    bench.choose(recipe, found, best)


def gate_of(options: SweepOptions) -> Gate:
    """The gate that a sweep's models are to pass."""
    return Gate(options.max_drop or 0.0, options.confidence)


def drop_of(sweep: Sweep, point: SweepPoint) -> Drop:
    """The drop of a point with its error."""
    return Drop(point.drop, point.drop_error, sweep.samples, sweep.relative_drop)


def judgement(sweep: Sweep, gate: Gate) -> str | None:
    """What the samples say of the model that was chosen, else of that of the smallest drop; None without an error."""
    point = min(sweep.points, key=lambda p: p.drop) if sweep.chosen is None else sweep.points[sweep.chosen]
    words = gate.words(drop_of(sweep, point))
    return None if words is None else f"{point.recipe} at {point.asked:g}: {words}"


def require_chosen(sweep: Sweep) -> SweepPoint:
    """The point within the allowed drop (GateError if there is none)."""
    if sweep.chosen is not None:
        return sweep.points[sweep.chosen]
    least, confidence = min(sweep.points, key=lambda p: p.drop), sweep.options.get("confidence", MEASURED)
    spread = "" if least.drop_error is None else f" (paired standard error {drop_of(sweep, least).shown_error})"
    limit = f"{sweep.options['max_drop']}" + ("" if confidence == MEASURED else f" at a confidence of {confidence}")
    raise GateError(
        f"No model lost at most {limit} of {sweep.metric}: the best of {len(sweep.points)} lost "
        f"{_bare(sweep, least.drop)}{spread}, at {least.macs_ratio:.4f} of the MACs.",
        hint="Allow more with --max-drop, evaluate more models with --evaluations, or calibrate on more --samples.",
    )


def _bare(sweep: Sweep, drop: float) -> str:
    return sweep.words_for(drop).removeprefix("+")


def _smallest_share(costs: Costs, asked: Sequence[float]) -> float:
    least = costs.remaining({name: range(group.least) for name, group in costs.groups.items()})["macs"]
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
    sources = [{role: source.published for role, source in sweep.inputs.items()} for sweep in (earlier, now)]
    pairs += [(role, sources[0].get(role), sources[1].get(role)) for role in roles]
    alike = ("optin_version", "task", "split", "metric", "workload")
    pairs += [(name.replace("_", " "), getattr(earlier, name), getattr(now, name)) for name in alike]
    pairs.append(("size of the original", earlier.baseline.totals, totals))
    other = list(dict.fromkeys(name for name, old, new in pairs if old != new))
    if other:
        raise ArtifactError(
            f"The sweep in {folder} was made with another {', another '.join(other)}.",
            hint="Repeat the interrupted command, or pass --force instead of --resume to start over.",
        )
