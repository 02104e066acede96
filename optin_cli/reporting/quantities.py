"""The main numbers of a report, before and after pruning, each measured or marked as missing."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from optin_cli.artifacts.base import Source, Totals, Workload
from optin_cli.artifacts.evaluation import Evaluation, Latency, Measure
from optin_cli.artifacts.manifest import Manifest
from optin_cli.artifacts.reading import Read
from optin_cli.artifacts.sweep import Sweep
from optin_cli.reporting.evidence import Evidence


@dataclass(frozen=True)
class Quantity:
    """One number before and after pruning.

    spread: standard error of `after`. paired: of the difference, over samples that both models see. ratio: after /
    before, where meaningful. conditions: what it was measured on. missing: how to measure it, if it was not measured.
    """

    name: str
    before: float | None = None
    after: float | None = None
    spread: float | None = None
    ratio: float | None = None
    conditions: str = ""
    missing: str | None = None
    is_metric: bool = False
    paired: float | None = None

    @property
    def verdict(self) -> str | None:
        """How the difference compares with its standard error, in words; None where that is not known."""
        if self.paired is None or self.before is None or self.after is None:
            return None
        difference = abs(self.after - self.before)
        errors = ("within its standard error", "within two standard errors", "more than two standard errors")
        return errors[(difference > self.paired) + (difference > 2 * self.paired)]


def workload_of(evidence: Evidence) -> Workload | None:
    """The input shape that costs are stated for."""
    heads: Iterable[Any] = (read.head for read in evidence.reads)
    return next((head.workload for head in heads), None)


def totals_before(evidence: Evidence) -> Totals | None:
    """Cost of the original, from the first artifact that states it."""
    if evidence.manifest is not None:
        return evidence.manifest.content.before
    sweeps = (read.content.baseline for read in evidence.sweeps)
    return next((record.totals for record in (*evidence.costs, *sweeps)), None)


def sizes(evidence: Evidence) -> Iterable[Quantity]:
    """MACs, parameters and bytes."""
    before = totals_before(evidence) or next((e.totals for e in _of_original(evidence)), None)
    after = None if evidence.manifest is None else evidence.manifest.content.after
    workload = workload_of(evidence)
    for name, key in (("MACs", "macs"), ("Parameters", "parameters"), ("Bytes of weights", "bytes")):
        conditions = f"one input of {workload.shape}" if key == "macs" and workload is not None else ""
        old, new = getattr(before, key, None), getattr(after, key, None)
        missing = None if new is not None else "No cut model is part of this report."
        ratio = new / old if new is not None and old else None
        yield Quantity(name, old, new, None, ratio, conditions, missing)


def _of_original(evidence: Evidence, *, other: bool = False) -> list[Evaluation]:
    """The evaluations of the original alone, or all others."""
    found = [read.content for read in evidence.evaluations]
    return [e for e in found if (e.inputs["checkpoint"].sha256 != evidence.original.sha256) is other]


def measures(evidence: Evidence) -> Iterable[Quantity]:
    """Latency and metrics of each evaluation; evaluations of the original alone provide the state before."""
    originals, mine = _of_original(evidence), _of_original(evidence, other=True)
    sweeps = [read.content for read in evidence.sweeps]
    timed = [_speed(e.latency, e.against.latency_ratio if e.against else None) for e in mine if e.latency is not None]
    timed = timed or [_speed_before(e.latency, HOW_TO_MEASURE) for e in originals if e.latency is not None]
    measured = [_metric(e, e.metric, originals) for e in mine if e.metric is not None] or [
        _metric_before(e, e.metric.name, e.metric.value, HOW_TO_MEASURE) for e in originals if e.metric is not None
    ]
    if evidence.manifest is None and not (timed or measured):
        speeds = [sweep.baseline.latency for sweep in sweeps]
        timed = [_speed_before(speed, IN_THE_SWEEP) for speed in speeds if speed is not None]
        measured = [_metric_before(sweep, sweep.metric, sweep.baseline.value, IN_THE_SWEEP) for sweep in sweeps]
    chosen = [pair for sweep in sweeps if (pair := _chosen(sweep, evidence.manifest)) is not None]
    yield from timed or [speed for speed, _ in chosen if speed] or [Quantity("Latency", missing=HOW_TO_MEASURE)]
    yield from measured or [value for _, value in chosen] or [Quantity("Task metric", missing=HOW_TO_MEASURE)]


def _chosen(sweep: Sweep, manifest: Read[Manifest] | None) -> tuple[Quantity | None, Quantity] | None:
    """What a sweep measured on the model that it chose, if that is the pruned model of this report."""
    if manifest is None or sweep.chosen is None:
        return None
    point, record = sweep.points[sweep.chosen], manifest.content
    if (record.options.get("recipe"), record.budget.asked) != (point.recipe, {"macs": point.asked}):
        return None
    data = f"{_data(sweep)}, by the sweep that chose it"
    before, error = sweep.baseline.value, point.drop_error
    paired = error if error is None or not sweep.relative_drop else error * before
    value = Quantity(sweep.metric, before, point.value, point.standard_error, None, data, None, True, paired)
    return _speed(point.latency, point.latency_ratio) if point.latency and point.latency_ratio else None, value


IN_THE_SWEEP = "Of the pruned models: see the frontier."
HOW_TO_MEASURE = "Not measured: optin eval with --against measures both models in one run."


def _conditions(latency: Latency) -> str:
    return f"median of {latency.runs} runs, batch {latency.batch_size}, {latency.shape}, {latency.timed_on}"


def _speed(latency: Latency, ratio: float | None) -> Quantity:
    before = latency.median_ms / ratio if ratio else None
    return Quantity("Latency (ms)", before, latency.median_ms, None, ratio, _conditions(latency))


def _speed_before(latency: Latency, missing: str) -> Quantity:
    return Quantity("Latency (ms)", latency.median_ms, conditions=_conditions(latency), missing=missing)


def _data(record: Evaluation | Sweep) -> str:
    name = record.inputs["data"].name if "data" in record.inputs else "no data"
    return f"{name}, {record.samples:,} samples"


def _metric_before(record: Evaluation | Sweep, name: str, value: float, missing: str) -> Quantity:
    return Quantity(name, value, conditions=_data(record), missing=missing, is_metric=True)


def _metric(evaluation: Evaluation, metric: Measure, originals: Iterable[Evaluation]) -> Quantity:
    other = evaluation.against
    before = other.metric.value if other is not None and other.metric is not None else None
    if before is None:  # an evaluation of the original alone, by the same task on the same data
        same = (metric.name, *_what_on(evaluation))
        alone = ((e.metric.value, (e.metric.name, *_what_on(e))) for e in originals if e.metric)
        before = next((value for value, key in alone if key == same), None)
    error, paired = evaluation.standard_error, None
    if other is not None and other.drop_error is not None and before is not None:
        paired = other.drop_error * before if other.relative_drop else other.drop_error
    return Quantity(metric.name, before, metric.value, error, None, _data(evaluation), None, True, paired)


def _what_on(evaluation: Evaluation) -> tuple[str | None, int, Source | None]:
    """By what, and on what, an evaluation measures."""
    data = evaluation.inputs.get("data")
    return evaluation.task, evaluation.samples, None if data is None else data.published
