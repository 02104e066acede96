"""The facts of a report as plain records: what was measured, and what was not."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from optin_cli.artifacts.base import Totals, Workload
from optin_cli.artifacts.costs import BLOCK, GroupCost
from optin_cli.artifacts.evaluation import Evaluation
from optin_cli.artifacts.manifest import Certificate, Manifest, Refit
from optin_cli.artifacts.mask import Mask
from optin_cli.artifacts.reading import Read
from optin_cli.artifacts.scores import Scores, ScoresHeader
from optin_cli.artifacts.sweep import Sweep
from optin_cli.reporting.commands import commands_for
from optin_cli.reporting.evidence import Evidence
from optin_cli.reporting.quantities import Quantity, measures, sizes, totals_before, workload_of
from optin_cli.searching.costs import Costs


@dataclass(frozen=True)
class GroupFacts:
    """One group: kept unit indices (None if nothing was pruned) and importances, where known."""

    name: str
    label: str
    block: str
    kind: str
    units: int
    kept: tuple[int, ...] | None
    importance: tuple[float, ...] | None

    @property
    def share_kept(self) -> float | None:
        """Share of the group's importance held by its kept units."""
        if self.importance is None or self.kept is None or sum(self.importance) == 0:
            return None
        return sum(self.importance[unit] for unit in self.kept) / sum(self.importance)


@dataclass(frozen=True)
class LayerCost:
    """MACs of a layer's prunable parts, or of everything that cannot be pruned."""

    name: str
    before: float
    after: float | None


@dataclass(frozen=True)
class Origin:
    """A file or source that the report is based on."""

    role: str
    name: str
    sha256: str
    version: str | None
    tie: str


@dataclass(frozen=True)
class Report:
    """The content of a report. sides: what columns call models, by hash; others go by their names."""

    title: str
    original: str
    is_cut: bool
    sides: Mapping[str, str]
    budget: tuple[tuple[str, float, float | None], ...]
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
    """Assemble the facts; nothing is estimated that was not measured."""
    manifest = None if evidence.manifest is None else evidence.manifest.content
    scores = evidence.scores.content if evidence.scores and isinstance(evidence.scores.content, Scores) else None
    source = manifest or (None if evidence.mask is None else evidence.mask.content)
    priced = scores.header if scores else evidence.profile and evidence.profile.content
    costs: Mapping[str, GroupCost] = priced.groups if priced else {}
    return Report(
        title=_title(evidence),
        original=evidence.original.name,
        is_cut=manifest is not None,
        sides=_sides(evidence),
        budget=() if source is None else _budget(source, evidence),
        quantities=(*sizes(evidence), *measures(evidence)),
        workload=workload_of(evidence),
        groups=_groups(source, scores, costs),
        layers=_layers(source, costs, totals_before(evidence), manifest.after if manifest else None),
        criterion=scores.header.criterion if scores else None,
        evaluations=tuple((read.name, read.content) for read in evidence.evaluations),
        sweeps=tuple((read.name, read.content) for read in evidence.sweeps),
        refit=manifest.refit if manifest else None,
        refit_data=manifest.inputs["calibration"].name if manifest and "calibration" in manifest.inputs else None,
        certificate=manifest.certificate if manifest else None,
        commands=tuple(commands_for(evidence)),
        origins=tuple(_origins(evidence)),
        versions=manifest.versions if manifest else {},
        options=tuple((read.name, key, _shown(v)) for read in evidence.reads for key, v in read.head.options.items()),
    )


def _title(evidence: Evidence) -> str:
    original, pruned = evidence.original.name, evidence.pruned
    return original if pruned is None else pruned.name if pruned.name != original else f"{original}, pruned"


def _sides(evidence: Evidence) -> dict[str, str]:
    pruned = [] if evidence.pruned is None else [evidence.pruned]
    measured = [read.content.inputs["checkpoint"] for read in evidence.evaluations]
    pruned += [one for one in measured if one.name == evidence.original.name]
    return {one.sha256: "pruned" for one in pruned} | {evidence.original.sha256: "original"}


def _budget(source: Manifest | Mask, evidence: Evidence) -> tuple[tuple[str, float, float | None], ...]:
    """Name, asked share and reached share of each budget; None where nobody measured what is reached.

    A manifest states what its mask reaches. A mask states what the search reached and may have been edited since, so
    its shares are recounted where a file with costs is at hand.
    """
    budget = source.budget
    for costs in evidence.costs if isinstance(source, Mask) else ():
        if costs.workload == source.workload and source.groups.keys() <= costs.groups.keys():
            kept = {name: group.kept for name, group in source.groups.items()}
            tokens = costs.tokens if isinstance(costs, ScoresHeader) else None
            budget = Costs(costs.groups, costs.totals, tokens).recount(budget, kept)
            break
    return tuple((name, share, budget.reached.get(name)) for name, share in budget.asked.items())


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
    """MACs by layer; weights shared by two groups count once, in the layer of the group that lists them."""
    if totals is None or not costs:
        return ()
    costs = {name: group for name, group in costs.items() if group.kind != BLOCK}  # their units are counted
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
    original, pruned, reads = evidence.original, evidence.pruned, evidence.reads
    yield Origin("original checkpoint", original.name, original.sha256, None, "named by the artifacts")
    if pruned is not None:
        yield Origin("cut model", pruned.name, pruned.sha256, None, "computed from config and weights")
    for read in reads:
        if read.kind != "manifest":
            yield Origin(read.kind, read.name, read.sha256, read.head.optin_version, _tie(read, evidence))
    seen = set()
    for read in reads:
        for role, source in read.head.inputs.items():
            if role in ("architecture", "calibration", "data") and source.sha256 not in seen:
                seen.add(source.sha256)
                yield Origin(f"{role} of the {read.kind}", source.name, source.sha256, None, "as recorded")
    if evidence.manifest is not None and evidence.mask is None:
        named = evidence.manifest.content.inputs["mask"]
        yield Origin("mask", named.name, named.sha256, None, "as recorded; the file was not found")


def _tie(read: Read[Any], evidence: Evidence) -> str:
    """How a file was matched, in words."""
    if read.kind == "eval":
        return f"measured {read.head.inputs['checkpoint'].name}, by the hash of its weights and config"
    if read.kind == "mask" and evidence.manifest is not None:
        return "the cut model's record names its hash"
    if read.kind == "scores":
        named = evidence.mask is not None and "scores" in evidence.mask.content.inputs
        return "the mask names its hash" if named else "made from the same checkpoint; no mask at hand names its hash"
    return "made from the same checkpoint"


def _shown(value: object) -> str:
    if value is None:
        return "default"
    return ", ".join(f"{v}" for v in value) or "none" if isinstance(value, (list, tuple)) else str(value)
