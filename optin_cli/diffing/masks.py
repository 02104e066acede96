"""Differences between two masks, or between the manifests of two pruned models."""

from collections.abc import Mapping

from optin_cli.artifacts.manifest import Manifest
from optin_cli.artifacts.mask import GroupMask, Mask
from optin_cli.diffing.tables import Difference, Row, Section, Side, body, contents, diff_heads, diff_values, difference


def diff_masks(a: Side, b: Side) -> Difference:
    """Compare kept units, then budgets, options and inputs."""
    return _diff(*contents(Mask, a, b), a, b, rest="budget")


def diff_manifests(a: Side, b: Side) -> Difference:
    """Compare kept units, then everything measured on the pruned models."""
    return _diff(*contents(Manifest, a, b), a, b, rest="record")


def _diff(mine: Mask | Manifest, theirs: Mask | Manifest, a: Side, b: Side, *, rest: str) -> Difference:
    """Compare kept units, then all else in a section named `rest`."""
    summary, groups = diff_groups(mine.groups, theirs.groups)
    values = diff_values(body(mine, "groups"), body(theirs, "groups"))
    return difference(a, b, summary, {"groups": groups, rest: values, **diff_heads(mine, theirs)})


def diff_groups(a: Mapping[str, GroupMask], b: Mapping[str, GroupMask]) -> tuple[Row, Section]:
    """Summarise what both masks keep, and list the groups whose kept units differ.

    Jaccard index: units kept by both over units kept by either (1 where neither keeps any).
    """
    rows: Section = {}
    both = either = 0
    for name in dict.fromkeys([*a, *b]):
        if name not in a or name not in b:
            there = a[name] if name in a else b[name]
            rows[name] = {
                "kept a": len(there.kept) if name in a else None,
                "kept b": len(there.kept) if name in b else None,
                "of": there.units,
                "jaccard": None,
                "only a": list(there.kept) if name in a else [],
                "only b": list(there.kept) if name in b else [],
            }
            either += len(there.kept)
            continue
        mine, theirs = set(a[name].kept), set(b[name].kept)
        both, either = both + len(mine & theirs), either + len(mine | theirs)
        if mine != theirs or a[name].units != b[name].units:
            same_size = a[name].units == b[name].units
            rows[name] = {
                "kept a": len(mine),
                "kept b": len(theirs),
                "of": a[name].units if same_size else f"{a[name].units} / {b[name].units}",
                "jaccard": len(mine & theirs) / len(mine | theirs) if mine | theirs else 1.0,
                "only a": [*sorted(mine - theirs)],
                "only b": [*sorted(theirs - mine)],
            }
    summary: Row = {
        "groups that differ": f"{len(rows)} of {len({**a, **b})}",
        "kept a": sum(len(group.kept) for group in a.values()),
        "kept b": sum(len(group.kept) for group in b.values()),
        "jaccard of all": both / either if either else 1.0,
    }
    return summary, rows
