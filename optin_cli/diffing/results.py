"""Differences between two evaluations, sweeps, profiles or latency tables; timings are listed apart."""

from pydantic import JsonValue

from optin_cli.artifacts.costs import Profile
from optin_cli.artifacts.evaluation import Evaluation
from optin_cli.artifacts.export import Export
from optin_cli.artifacts.generation import Quartiles
from optin_cli.artifacts.latency import Ladder, LatencyTable
from optin_cli.artifacts.sweep import Sweep
from optin_cli.artifacts.vocabulary import Vocabulary
from optin_cli.diffing.tables import (
    Difference,
    Row,
    Section,
    Side,
    contents,
    diff_bodies,
    diff_heads,
    diff_values,
    difference,
    flatten,
)

QUARTILES = tuple(f"_per_second.{name}" for name in Quartiles.model_fields)
TIMED_WORDS = (
    "median_ms",
    "samples_per_second",
    "latency_ratio",
    "prepare_seconds",
    "prune_seconds",
    "latency.device",
    "generation.device",
    "draft.device",
    "speedup",
    *QUARTILES,
)
"""How keys end whose values differ between any two runs, or two machines."""


def _split(rows: Section) -> tuple[Section, Section]:
    """Separate counted or computed values from timings."""
    timed = {key: row for key, row in rows.items() if key.endswith(TIMED_WORDS)}
    return {key: row for key, row in rows.items() if key not in timed}, timed


def diff_evaluations(a: Side, b: Side) -> Difference:
    """Compare metrics, sizes and ratios, then options and inputs."""
    mine, theirs = contents(Evaluation, a, b)
    measures, timings = _split(diff_bodies(mine, theirs, "pictures"))
    for side in ("", "against."):  # the first metric is among all of them
        first = f"{side}metric.value"
        if any(key.startswith(f"{side}metrics.") and row == measures.get(first) for key, row in measures.items()):
            del measures[first]
    return difference(a, b, {}, {"measures": measures, **diff_heads(mine, theirs)}, timings)


def diff_sweeps(a: Side, b: Side) -> Difference:
    """Compare points by recipe and budget, then the rest of the record."""
    mine, theirs = contents(Sweep, a, b)
    points: Section = {}
    timings: Section = {}
    here, there = ({f"{p.recipe} at {p.asked:g}": p for p in sweep.points} for sweep in (mine, theirs))
    for key in dict.fromkeys([*here, *there]):
        if key not in here or key not in there:
            points[key] = {side: own[key].value if key in own else None for side, own in (("a", here), ("b", there))}
            continue
        raws = (point.model_dump(mode="json", exclude={"recipe", "asked"}) for point in (here[key], there[key]))
        differs, timed = _split(diff_values(*({f"{key}: {k}": v for k, v in flatten(raw).items()} for raw in raws)))
        points |= differs
        timings |= timed
    rest, timed = _split(diff_bodies(mine, theirs, "points"))
    shared = sum(key in there for key in here)
    summary = {"points in both": shared, "only in a": len(here) - shared, "only in b": len(there) - shared}
    sections = {"points": points, "record": rest, **diff_heads(mine, theirs)}
    return difference(a, b, {**summary}, sections, timed | timings)


def diff_profiles(a: Side, b: Side) -> Difference:
    """Compare totals and the costs of each group."""
    mine, theirs = contents(Profile, a, b)
    return difference(a, b, {}, {"costs": diff_bodies(mine, theirs), **diff_heads(mine, theirs)})


def diff_vocabularies(a: Side, b: Side) -> Difference:
    """Compare numbers of tokens, costs and proofs."""
    mine, theirs = contents(Vocabulary, a, b)
    tokens: dict[str, JsonValue] = {"tokens of a": mine.tokens_after, "tokens of b": theirs.tokens_after}
    return difference(a, b, tokens, {"record": diff_bodies(mine, theirs), **diff_heads(mine, theirs)})


def diff_latencies(a: Side, b: Side) -> Difference:
    """Device, workload and the unit counts that were timed; every time is a timing, in milliseconds.

    A group's row holds the time that all its units add, and the largest difference over the counts that both timed.
    """
    mine, theirs = contents(LatencyTable, a, b)
    units: list[dict[str, JsonValue]] = [{n: [*ladder.units] for n, ladder in t.groups.items()} for t in (mine, theirs)]
    counts = diff_values(*units)
    timings = diff_values({"total_ms": mine.total_ms}, {"total_ms": theirs.total_ms})
    shared = [name for name in mine.groups if name in theirs.groups]
    for name in shared:
        if (row := _diff_ladders(mine.groups[name], theirs.groups[name])) is not None:
            timings[f"{name}.ms"] = row
    measured = diff_bodies(mine, theirs, "groups", "total_ms")
    sections = {"measured with": measured, "kept units that were timed": counts, **diff_heads(mine, theirs)}
    return difference(a, b, {"groups in both": len(shared)}, sections, timings)


def _diff_ladders(a: Ladder, b: Ladder) -> Row | None:
    whole, other = a.ms[-1], b.ms[-1]
    times = dict(zip(b.units, b.ms, strict=True))
    apart = {units: abs(times[units] - ms) for units, ms in zip(a.units, a.ms, strict=True) if units in times}
    if whole == other and not any(apart.values()):
        return None
    row: Row = {"a": whole, "b": other, "b - a": other - whole, "b / a": other / whole if whole else None}
    most = max(apart, key=lambda units: apart[units], default=None)
    return row | {"largest difference": None if most is None else apart[most], "at units": most}


def diff_exports(a: Side, b: Side) -> Difference:
    """Files, tensors and certificates by input shape, then all else: target, opset, costs, versions."""
    mine, theirs = contents(Export, a, b)
    parts = ("files", "takes", "gives", "certificate")
    sections = {
        "files": diff_values(*({n: f"sha256 {sha[:12]}" for n, sha in side.files.items()} for side in (mine, theirs))),
        "tensors": diff_values(_tensors(mine), _tensors(theirs)),
        "certificate": diff_values(_proof(mine), _proof(theirs)),
        "record": diff_bodies(mine, theirs, *parts),
        **diff_heads(mine, theirs),
    }
    return difference(a, b, {"file a": next(iter(mine.files)), "file b": next(iter(theirs.files))}, sections)


def _tensors(record: Export) -> dict[str, JsonValue]:
    return {
        f"{verb} {name}": f"{rule.dtype} {' x '.join(map(str, rule.shape))}"
        for verb, rules in (("takes", record.takes), ("gives", record.gives))
        for name, rule in rules.items()
    }


def _proof(record: Export) -> dict[str, JsonValue]:
    """The certificate, with the difference of each probe by its number and shape."""
    proof: dict[str, JsonValue] = record.certificate.model_dump(mode="json", exclude={"probes"})
    for number, probe in enumerate(record.certificate.probes):
        length = "" if probe.seq_len is None else f", {probe.seq_len} tokens"
        padded = ", padded" if probe.padded else ""
        proof[f"probe {number}: batch {probe.batch_size}{length}{padded}"] = probe.difference
    return proof
