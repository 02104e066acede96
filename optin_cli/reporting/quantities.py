"""The main numbers of a report, before and after pruning, each measured or marked as missing."""

from collections.abc import Iterable
from dataclasses import dataclass

from optin_cli.artifacts.base import Totals, Workload
from optin_cli.artifacts.evaluation import Evaluation, Latency
from optin_cli.artifacts.manifest import Manifest
from optin_cli.artifacts.reading import Read
from optin_cli.artifacts.sweep import Sweep
from optin_cli.reporting.evidence import Evidence


@dataclass(frozen=True)
class Quantity:
    """One number before and after pruning.

    spread: standard error of `after`. ratio: after / before, where meaningful. conditions: what it was measured on.
    missing: how to measure it, if it was not measured.
    """

    name: str
    before: float | None = None
    after: float | None = None
    spread: float | None = None
    ratio: float | None = None
    conditions: str = ""
    missing: str | None = None
    is_metric: bool = False


def reads_of(evidence: Evidence) -> list[Read]:
    """Every artifact of the report in pipeline order."""
    single = (evidence.manifest, evidence.mask, evidence.scores, evidence.profile)
    return [*(read for read in single if read is not None), *evidence.evaluations, *evidence.sweeps]


def workload_of(evidence: Evidence) -> Workload | None:
    """The input shape that costs are stated for."""
    heads = (read.head for read in reads_of(evidence))
    return next((found for head in heads if isinstance(found := getattr(head, "workload", None), Workload)), None)


def totals_before(evidence: Evidence, manifest: Manifest | None) -> Totals | None:
    """Cost of the original, from the first artifact that states it."""
    if manifest is not None:
        return manifest.before
    for read in (evidence.scores, evidence.profile):
        if read is not None and isinstance(found := getattr(read.head, "totals", None), Totals):
            return found
    for read in evidence.sweeps:
        if isinstance(read.content, Sweep):
            return read.content.baseline.totals
    return None


def sizes(evidence: Evidence, manifest: Manifest | None) -> Iterable[Quantity]:
    """MACs, parameters and bytes."""
    before = totals_before(evidence, manifest)
    if before is None:
        before = next((e.totals for e in _of_original(evidence)), None)
    workload = workload_of(evidence)
    for name, key in (("MACs", "macs"), ("Parameters", "parameters"), ("Bytes of weights", "bytes")):
        conditions = f"one input of {workload.shape}" if key == "macs" and workload is not None else ""
        old = getattr(before, key, None)
        new = getattr(manifest.after, key) if manifest is not None else None
        missing = None if new is not None else "No cut model is part of this report."
        ratio = new / old if new is not None and old else None
        yield Quantity(name, old, new, None, ratio, conditions, missing)


def _of_original(evidence: Evidence) -> list[Evaluation]:
    found = [read.content for read in evidence.evaluations if isinstance(read.content, Evaluation)]
    return [e for e in found if e.inputs["checkpoint"].sha256 == evidence.original.sha256]


def measures(
    evidence: Evidence,
    evaluations: Iterable[tuple[str, Evaluation]],
    sweeps: Iterable[tuple[str, Sweep]],
    manifest: Manifest | None,
) -> Iterable[Quantity]:
    """Latency and metrics of each evaluation; evaluations of the original alone provide the state before."""
    originals = _of_original(evidence)
    mine = [e for _, e in evaluations if all(e is not o for o in originals)]
    timed = [_speed(e) for e in mine if e.latency is not None] or [
        Quantity("Latency (ms)", before=e.latency.median_ms, conditions=_conditions(e.latency), missing=HOW_TO_MEASURE)
        for e in originals
        if e.latency is not None
    ]
    measured = [_metric(e, originals) for e in mine if e.metric is not None] or [
        Quantity(e.metric.name, before=e.metric.value, conditions=_data(e), missing=HOW_TO_MEASURE, is_metric=True)
        for e in originals
        if e.metric is not None
    ]
    if manifest is None and not (timed or measured):
        timed, measured = [*_baseline_speeds(sweeps)], [*_baseline_values(sweeps)]
    chosen = [pair for _, sweep in sweeps if (pair := _chosen(sweep, manifest)) is not None]
    yield from timed or [speed for speed, _ in chosen if speed] or [Quantity("Latency", missing=HOW_TO_MEASURE)]
    yield from measured or [value for _, value in chosen] or [Quantity("Task metric", missing=HOW_TO_MEASURE)]


def _baseline_speeds(sweeps: Iterable[tuple[str, Sweep]]) -> Iterable[Quantity]:
    for _, sweep in sweeps:
        if (speed := sweep.baseline.latency) is not None:
            yield Quantity("Latency (ms)", speed.median_ms, conditions=_conditions(speed), missing=IN_THE_SWEEP)


def _baseline_values(sweeps: Iterable[tuple[str, Sweep]]) -> Iterable[Quantity]:
    for _, sweep in sweeps:
        data = f"{sweep.inputs['data'].name}, {sweep.samples:,} samples"
        yield Quantity(sweep.metric, sweep.baseline.value, conditions=data, missing=IN_THE_SWEEP, is_metric=True)


def _chosen(sweep: Sweep, manifest: Manifest | None) -> tuple[Quantity | None, Quantity] | None:
    """What a sweep measured on the model that it chose, if that is the pruned model of this report."""
    if manifest is None or sweep.chosen is None:
        return None
    point, base = sweep.points[sweep.chosen], sweep.baseline
    if (manifest.options.get("recipe"), manifest.budget.asked) != (point.recipe, {"macs": point.asked}):
        return None
    data = f"{sweep.inputs['data'].name}, {sweep.samples:,} samples, by the sweep that chose it"
    value = Quantity(sweep.metric, base.value, point.value, point.standard_error, None, data, None, True)
    if point.latency is None or not point.latency_ratio:
        return None, value
    before = point.latency.median_ms / point.latency_ratio
    speed = Quantity(
        "Latency (ms)", before, point.latency.median_ms, None, point.latency_ratio, _conditions(point.latency)
    )
    return speed, value


IN_THE_SWEEP = "Of the pruned models: see the frontier."
HOW_TO_MEASURE = "Not measured: optin eval with --against measures both models in one run."


def _conditions(latency: Latency) -> str:
    return f"median of {latency.runs} runs, batch {latency.batch_size}, {latency.shape}, {latency.timed_on}"


def _speed(evaluation: Evaluation) -> Quantity:
    latency, other = evaluation.latency, evaluation.against
    if latency is None:
        raise TypeError(evaluation.task)
    ratio = other.latency_ratio if other is not None else None
    before = latency.median_ms / ratio if ratio else None
    return Quantity("Latency (ms)", before, latency.median_ms, None, ratio, _conditions(latency))


def _data(evaluation: Evaluation) -> str:
    name = evaluation.inputs["data"].name if "data" in evaluation.inputs else "no data"
    return f"{name}, {evaluation.samples:,} samples"


def _metric(evaluation: Evaluation, originals: Iterable[Evaluation]) -> Quantity:
    metric, other = evaluation.metric, evaluation.against
    if metric is None:
        raise TypeError(evaluation.task)
    before = other.metric.value if other is not None and other.metric is not None else None
    if before is None:  # an evaluation of the original alone, by the same task on the same data
        same = (metric.name, evaluation.task, evaluation.samples, evaluation.inputs.get("data"))
        before = next(
            (
                e.metric.value
                for e in originals
                if e.metric is not None and (e.metric.name, e.task, e.samples, e.inputs.get("data")) == same
            ),
            None,
        )
    return Quantity(metric.name, before, metric.value, evaluation.standard_error, None, _data(evaluation), None, True)
