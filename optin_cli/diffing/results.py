"""Differences between two evaluations, sweeps, profiles or latency tables; timings are listed apart."""

from __future__ import annotations

from pydantic import JsonValue

from optin_cli.artifacts.costs import Profile
from optin_cli.artifacts.evaluation import Evaluation
from optin_cli.artifacts.sweep import Sweep, SweepPoint
from optin_cli.diffing.tables import Difference, Section, Side, body, diff_heads, diff_values, difference, flatten

TIMED_WORDS = ("median_ms", "samples_per_second", "latency_ratio", "prepare_seconds", "prune_seconds")
"""Last words of the keys that differ between any two runs."""


def _split(rows: Section) -> tuple[Section, Section]:
    """Separate counted or computed values from timings."""
    timed = {key: row for key, row in rows.items() if key.endswith(TIMED_WORDS)}
    return {key: row for key, row in rows.items() if key not in timed}, timed


def diff_evaluations(a: Side, b: Side) -> Difference:
    """Compare metrics, sizes and ratios, then options and inputs."""
    mine, theirs = a.content, b.content
    if not (isinstance(mine, Evaluation) and isinstance(theirs, Evaluation)):
        raise TypeError(a.kind)
    measures, timings = _split(diff_values(body(mine), body(theirs)))
    return difference(a, b, {}, {"measures": measures, **diff_heads(mine, theirs)}, timings)


def diff_sweeps(a: Side, b: Side) -> Difference:
    """Compare points by recipe and budget, then the rest of the record."""
    mine, theirs = a.content, b.content
    if not (isinstance(mine, Sweep) and isinstance(theirs, Sweep)):
        raise TypeError(a.kind)
    points: Section = {}
    timings: Section = {}
    here, there = ({_key(point): point for point in sweep.points} for sweep in (mine, theirs))
    for key in dict.fromkeys([*here, *there]):
        if key not in here or key not in there:
            value = (here.get(key) or there[key]).value
            points[key] = {"a": value if key in here else None, "b": value if key in there else None}
            continue
        pair = ({f"{key}: {k}": v for k, v in _plain(point).items()} for point in (here[key], there[key]))
        differs, timed = _split(diff_values(*pair))
        points |= differs
        timings |= timed
    rest, timed = _split(diff_values(body(mine, "points"), body(theirs, "points")))
    shared = sum(key in there for key in here)
    summary = {"points in both": shared, "only in a": len(here) - shared, "only in b": len(there) - shared}
    sections = {"points": points, "record": rest, **diff_heads(mine, theirs)}
    return difference(a, b, {**summary}, sections, timed | timings)


def _key(point: SweepPoint) -> str:
    return f"{point.recipe} at {point.asked:g}"


def _plain(point: SweepPoint) -> dict[str, JsonValue]:
    raw = point.model_dump(mode="json")
    return {**flatten({k: v for k, v in raw.items() if k not in ("recipe", "asked")})}


def diff_profiles(a: Side, b: Side) -> Difference:
    """Compare totals and the costs of each group."""
    mine, theirs = a.content, b.content
    if not (isinstance(mine, Profile) and isinstance(theirs, Profile)):
        raise TypeError(a.kind)
    return difference(a, b, {}, {"costs": diff_values(body(mine), body(theirs)), **diff_heads(mine, theirs)})
