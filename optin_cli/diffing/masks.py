"""Differences between two masks, or between the manifests of two pruned models."""

from collections.abc import Mapping

from optin_cli.artifacts.manifest import Manifest
from optin_cli.artifacts.mask import GroupMask, Mask
from optin_cli.diffing.tables import Difference, Row, Section, Side, contents, diff_bodies, diff_heads, difference


def diff_masks(a: Side, b: Side) -> Difference:
    """Compare kept units, then budgets, options and inputs; of pruned models, everything measured on them."""
    kind: type[Mask | Manifest] = Mask if a.kind == Mask.kind else Manifest
    mine, theirs = contents(kind, a, b)
    summary, groups = diff_groups(mine.groups, theirs.groups)
    rest = {"budget" if kind is Mask else "record": diff_bodies(mine, theirs, "groups")}
    return difference(a, b, summary, {"groups": groups, **rest, **diff_heads(mine, theirs)})


def diff_groups(a: Mapping[str, GroupMask], b: Mapping[str, GroupMask]) -> tuple[Row, Section]:
    """Summarise what both masks keep, and list the groups whose kept units differ.

    Jaccard index: units kept by both over units kept by either (1 where neither keeps any).
    """
    rows: Section = {}
    both = either = 0
    for name in dict.fromkeys([*a, *b]):
        found = [masks[name] for masks in (a, b) if name in masks]
        mine, theirs = (set(masks[name].kept if name in masks else ()) for masks in (a, b))
        both, either = both + len(mine & theirs), either + len(mine | theirs)
        units = [*dict.fromkeys(group.units for group in found)]
        if len(found) == 1 or mine != theirs or len(units) > 1:
            share = len(mine & theirs) / len(mine | theirs) if mine | theirs else 1.0
            rows[name] = {
                "kept a": len(mine) if name in a else None,
                "kept b": len(theirs) if name in b else None,
                "of": units[0] if len(units) == 1 else " / ".join(map(str, units)),
                "jaccard": share if len(found) == 2 else None,
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
