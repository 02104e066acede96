"""Evidence in; the facts of a report out: plain records of numbers that were measured, and what was not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from optin_cli.artifacts import (
    Certificate,
    Evaluation,
    GroupCost,
    Latency,
    Manifest,
    Mask,
    Profile,
    Refit,
    Sweep,
    Totals,
    Workload,
)
from optin_cli.reading import Read
from optin_cli.reporting.commands import commands_for
from optin_cli.reporting.evidence import Evidence
from optin_cli.scores import Scores


@dataclass(frozen=True)
class Quantity:
    """One essential number, before and after.

    spread: standard error of `after`. ratio: after / before, where that says something. conditions: what it was
    measured on. missing: what to do where it was not measured.
    """

    name: str
    before: float | None = None
    after: float | None = None
    spread: float | None = None
    ratio: float | None = None
    conditions: str = ""
    missing: str | None = None
    is_metric: bool = False


@dataclass(frozen=True)
class GroupFacts:
    """One group: kept unit indices (None: nothing was cut) and importances, where they are known."""

    name: str
    label: str
    block: str
    kind: str
    units: int
    kept: tuple[int, ...] | None
    importance: tuple[float, ...] | None

    @property
    def share_kept(self) -> float | None:
        """Share of the group's importance that its kept units hold."""
        if self.importance is None or self.kept is None or sum(self.importance) == 0:
            return None
        return sum(self.importance[unit] for unit in self.kept) / sum(self.importance)


@dataclass(frozen=True)
class LayerCost:
    """MACs of a layer's prunable parts, or of all that cannot be pruned."""

    name: str
    before: float
    after: float | None


@dataclass(frozen=True)
class Origin:
    """A file or source that the report rests on."""

    role: str
    name: str
    sha256: str
    version: str | None
    tie: str


@dataclass(frozen=True)
class Report:
    """All that a report says."""

    title: str
    original: str
    is_cut: bool
    budget: tuple[tuple[str, float, float], ...]
    quantities: tuple[Quantity, ...]
    workload: Workload | None
    groups: tuple[GroupFacts, ...]
    layers: tuple[LayerCost, ...]
    criterion: str | None
    evaluations: tuple[tuple[str, Evaluation], ...]
    sweeps: tuple[tuple[str, Sweep], ...]
    refit: Mapping[str, Refit] | None
    refit_data: str | None
    certificate: Certificate | None
    commands: tuple[str, ...]
    origins: tuple[Origin, ...]
    versions: Mapping[str, str]
    options: tuple[tuple[str, str, str], ...]


def make_report(evidence: Evidence) -> Report:
    """Put the facts of the evidence together; nothing is estimated that was not measured."""
    manifest = evidence.manifest.content if evidence.manifest is not None else None
    mask = evidence.mask.content if evidence.mask is not None else None
    scores = evidence.scores.content if evidence.scores is not None else None
    manifest = manifest if isinstance(manifest, Manifest) else None
    source = manifest or (mask if isinstance(mask, Mask) else None)
    evaluations = tuple(
        (read.name, read.content) for read in evidence.evaluations if isinstance(read.content, Evaluation)
    )
    sweeps = tuple((read.name, read.content) for read in evidence.sweeps if isinstance(read.content, Sweep))
    costs = _costs(evidence)
    return Report(
        title=evidence.pruned.name if evidence.pruned is not None else evidence.original.name,
        original=evidence.original.name,
        is_cut=manifest is not None,
        budget=()
        if source is None
        else tuple(
            (name, share, source.budget.reached.get(name, share)) for name, share in source.budget.asked.items()
        ),
        quantities=(*_sizes(manifest, evidence, sweeps), *_measures(evidence, evaluations, sweeps, manifest)),
        workload=_workload(evidence, source, sweeps),
        groups=_groups(source, scores if isinstance(scores, Scores) else None, costs),
        layers=_layers(source, costs, _totals(evidence, manifest), manifest.after if manifest else None),
        criterion=scores.header.criterion if isinstance(scores, Scores) else None,
        evaluations=evaluations,
        sweeps=sweeps,
        refit=manifest.refit if manifest else None,
        refit_data=manifest.inputs["calibration"].name if manifest and "calibration" in manifest.inputs else None,
        certificate=manifest.certificate if manifest else None,
        commands=tuple(commands_for(evidence)),
        origins=tuple(_origins(evidence)),
        versions=manifest.versions if manifest else {},
        options=tuple(_options(evidence)),
    )


def _reads(evidence: Evidence) -> list[Read]:
    single = (evidence.manifest, evidence.mask, evidence.scores, evidence.profile)
    return [*(read for read in single if read is not None), *evidence.evaluations, *evidence.sweeps]


def _workload(
    evidence: Evidence, source: Manifest | Mask | None, sweeps: Iterable[tuple[str, Sweep]]
) -> Workload | None:
    holders = [source, *(read.head for read in _reads(evidence)), *(sweep for _, sweep in sweeps)]
    return next((found for holder in holders if isinstance(found := getattr(holder, "workload", None), Workload)), None)


def _costs(evidence: Evidence) -> Mapping[str, GroupCost]:
    """Unit costs by group, from the scores or else a profile."""
    if evidence.scores is not None and isinstance(evidence.scores.content, Scores):
        return evidence.scores.content.header.groups
    if evidence.profile is not None and isinstance(evidence.profile.content, Profile):
        return evidence.profile.content.groups
    return {}


def _totals(evidence: Evidence, manifest: Manifest | None) -> Totals | None:
    if manifest is not None:
        return manifest.before
    for read in (evidence.scores, evidence.profile):
        if read is not None and isinstance(found := getattr(read.head, "totals", None), Totals):
            return found
    for read in evidence.sweeps:
        if isinstance(read.content, Sweep):
            return read.content.baseline.totals
    return None


def _sizes(manifest: Manifest | None, evidence: Evidence, sweeps: Iterable[tuple[str, Sweep]]) -> Iterable[Quantity]:
    before = _totals(evidence, manifest)
    if before is None:
        before = next((e.totals for e in _of_original(evidence)), None)
    workload = _workload(evidence, manifest, sweeps)
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


def _measures(
    evidence: Evidence,
    evaluations: Iterable[tuple[str, Evaluation]],
    sweeps: Iterable[tuple[str, Sweep]],
    manifest: Manifest | None,
) -> Iterable[Quantity]:
    """Latency and metrics, of each evaluation; those of the original alone serve as the state before."""
    originals = _of_original(evidence)
    mine = [e for _, e in evaluations if all(e is not o for o in originals)]
    timed = [_speed(e) for e in mine if e.latency is not None] or [
        Quantity("Latency (ms)", before=e.latency.median_ms, conditions=_conditions(e.latency), missing=HOW_TO_MEASURE)
        for e in originals
        if e.latency is not None
    ]
    measured = [_metric(e, originals) for e in mine if e.metric is not None] or [
        Quantity(
            e.metric.name,
            before=e.metric.value,
            conditions=_data(e),
            missing=HOW_TO_MEASURE,
            is_metric=True,
        )
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
    """What a sweep measured of the model that it chose and wrote, where that is the cut one."""
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
    threads = f", {latency.threads} thread{'s' if latency.threads != 1 else ''}" if latency.device == "cpu" else ""
    return f"median of {latency.runs} runs, batch {latency.batch_size}, {latency.shape}, {latency.device}{threads}"


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


def _groups(
    source: Manifest | Mask | None, scores: Scores | None, costs: Mapping[str, GroupCost]
) -> tuple[GroupFacts, ...]:
    units = {name: group.units for name, group in costs.items()}
    units |= {name: group.units for name, group in (source.groups if source is not None else {}).items()}
    found = []
    for name, count in units.items():
        block, kind = (costs[name].block, costs[name].kind) if name in costs else name.rpartition(".")[::2]
        kept = None if source is None else tuple(source.groups[name].kept) if name in source.groups else None
        vector = None if scores is None else scores.importance.get(name)
        importance = None if vector is None else tuple(float(v) for v in vector)
        label = name.removesuffix(f".{kind}") or name
        found.append(GroupFacts(name, label, block, kind, count, kept, importance))
    return tuple(found)


def _layers(
    source: Manifest | Mask | None, costs: Mapping[str, GroupCost], totals: Totals | None, after: Totals | None
) -> tuple[LayerCost, ...]:
    """MACs by layer. Weights that two groups share count once, in the layer of the group that names them."""
    if totals is None or not costs:
        return ()
    before: dict[str, float] = {}
    saved: dict[str, float] = {}
    gone = {
        name: 0 if source is None or name not in source.groups else group.units - len(source.groups[name].kept)
        for name, group in costs.items()
    }
    for name, group in costs.items():
        whole, less = group.unit_macs * group.units, group.unit_macs * gone[name]
        for other, shared in group.shared.items():
            if other in costs:
                whole -= shared.macs * group.units * costs[other].units
                less -= shared.macs * gone[name] * gone[other]
        before[group.block] = before.get(group.block, 0.0) + whole
        saved[group.block] = saved.get(group.block, 0.0) + less
    rest = totals.macs - sum(before.values())
    layers = [LayerCost(b, m, None if source is None else m - saved[b]) for b, m in before.items()]
    layers.append(LayerCost("cannot be pruned", rest, None if source is None else rest))
    whole_after = None if source is None else after.macs if after is not None else totals.macs - sum(saved.values())
    return (*layers, LayerCost("whole model", totals.macs, whole_after))


def _origins(evidence: Evidence) -> Iterable[Origin]:
    yield Origin(
        "original checkpoint", evidence.original.name, evidence.original.sha256, None, "named by the artifacts"
    )
    if evidence.pruned is not None:
        yield Origin(
            "cut model", evidence.pruned.name, evidence.pruned.sha256, None, "computed from config and weights"
        )
    for read in _reads(evidence):
        if read.kind != "manifest":
            tie = evidence.ties.get(read.name, "")
            yield Origin(read.kind, read.name, read.sha256, read.head.optin_version, tie)
    seen = set()
    for read in _reads(evidence):
        for role, source in read.head.inputs.items():
            if role in ("calibration", "data") and source.sha256 not in seen:
                seen.add(source.sha256)
                yield Origin(f"{role} of the {read.kind}", source.name, source.sha256, None, "as recorded")
    manifest = evidence.manifest
    if manifest is not None and evidence.mask is None:
        named = manifest.head.inputs["mask"]
        yield Origin("mask", named.name, named.sha256, None, "as recorded; the file was not found")


def _options(evidence: Evidence) -> Iterable[tuple[str, str, str]]:
    for read in _reads(evidence):
        for key, value in read.head.options.items():
            yield read.name, key, _shown(value)


def _shown(value: object) -> str:
    if value is None:
        return "default"
    return ", ".join(f"{v}" for v in value) or "none" if isinstance(value, (list, tuple)) else str(value)
