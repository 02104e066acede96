"""Uniform layouts: the same number of units in every layer. No model, no torch.

The groups of a class (the heads of all layers of a stack, their neurons) keep the same number of units, each its own
best ones. A class thus is one group whose n-th unit is the n-th best of every member: its importance and its cost are
the members' sums.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np

from optin_cli.artifacts.base import Vector32
from optin_cli.artifacts.costs import GroupCost
from optin_cli.artifacts.mask import layout_class
from optin_cli.errors import BudgetError, UsageError
from optin_cli.options.search import Layout
from optin_cli.searching.budget import Row
from optin_cli.searching.decilm import NEURON

REMEDY = (
    "Leave out --layout uniform: layers of different widths load with trust_remote_code=True, or optin_cli.load, "
    "and lose less."
)


Classes = Mapping[str, list[str]]
"""Names of the groups that are pruned alike, by class."""


def classes_of(groups: Mapping[str, GroupCost], layout: Layout = "uniform") -> Classes:
    """The groups that a layout prunes alike. Under "deci", neurons of a layer are a class of their own."""
    classes: dict[str, list[str]] = {}
    for name, group in groups.items():
        alone = layout == "deci" and group.kind == NEURON
        classes.setdefault(name if alone else layout_class(name, group.block), []).append(name)
    return classes


def pinned_classes(groups: Mapping[str, GroupCost]) -> list[str]:
    """Unit classes whose size is fixed by the library's config."""
    return [name for name, members in classes_of(groups).items() if any(groups[m].config is None for m in members)]


def whole_words(groups: Mapping[str, GroupCost]) -> str:
    """Words for the classes that must stay whole; empty if none must."""
    pinned = pinned_classes(groups)
    return f", under which {' and '.join(pinned)} {'stay' if len(pinned) > 1 else 'stays'} whole" if pinned else ""


def require_expressible(groups: Mapping[str, GroupCost], model_class: str) -> None:
    """Refuse a model whose config can state no mask at all (UsageError, with the reason)."""
    if not any("config" in group.model_fields_set for group in groups.values()):
        raise UsageError(
            f"The scores of this {model_class} do not say what its config can state: an earlier optin wrote them.",
            hint="Score the checkpoint again for --layout uniform.",
        )
    if len(pinned_classes(groups)) == len(classes_of(groups)):
        raise UsageError(
            f"--layout uniform cannot be had for this {model_class}: its config has no key that states fewer units "
            f"of {', '.join(classes_of(groups))}, so that its stock class could not load the result.",
            hint=REMEDY,
        )


def merge_importance(
    importance: Mapping[str, Vector32], groups: Mapping[str, GroupCost], classes: Classes
) -> dict[str, Vector32]:
    """Importances (units,) of the n-th best units of all members together, by class."""
    merged = {}
    for name, members in classes.items():
        units = min(groups[m].units for m in members)
        ranked = [np.sort(importance[m].astype(np.float64))[::-1][:units] for m in members]
        merged[name] = np.sum(ranked, axis=0).astype(np.float32)
    return merged


def merge_row(row: Row, groups: Mapping[str, GroupCost], classes: Classes) -> Row:
    """A budget over classes. Groups that share weights stay whole under this layout, so what they share is fixed."""
    own = {name: sum(row.own[m] for m in members) for name, members in classes.items()}
    curves = {
        name: np.sum([row.curves[m][: min(groups[n].units for n in members) + 1] for m in members], axis=0)
        for name, members in classes.items()
        if all(m in row.curves for m in members)
    }
    shared = sum(each * groups[a].units * groups[b].units for a, b, each in row.pairs)
    return replace(row, own=own, pairs=(), fixed=row.fixed + shared, curves=curves)


def uniform_levels(
    groups: Mapping[str, GroupCost], levels: Mapping[str, list[int]], whole: Collection[str], classes: Classes
) -> dict[str, list[int]]:
    """Counts that all members of a class may keep and the library's config can state, ascending, by class.

    levels: counts that each group may keep. whole: groups that are protected.

    Raises UsageError: only some groups of a class are protected, or are of different sizes and must stay whole.
    BudgetError: no count is left.
    """
    found = {}
    for name, members in classes.items():
        spared = [m for m in members if m in whole]
        if spared and len(spared) < len(members):
            other = next(m for m in members if m not in whole)
            raise UsageError(
                f"All layers are to have the same number of units, but {spared[0]} is protected and {other} is not.",
                hint=f"Protect all of them (--protect '*{name.partition('.')[2]}'), or none.",
            )
        sizes = {groups[m].units for m in members}
        config = groups[members[0]].config
        common = set.intersection(*(set(levels[m]) for m in members))
        if config is None or any(groups[m].config is None for m in members):
            counts = sizes & common if len(sizes) == 1 else set()
        else:
            counts = {k for k in common if {k} == sizes or config.allows(k)}
        if any(groups[m].shared for m in members):
            counts &= sizes
        if not counts:
            raise BudgetError(
                f"No number of units of {name} is allowed in every layer: "
                f"they have {', '.join(map(str, sorted(sizes)))} units"
                + (f", and the stock config states {config.words}" if config else " and must stay whole")
                + ".",
                hint=f"Lower --round-to, --min-heads or --min-neurons. {REMEDY}",
            )
        found[name] = sorted(counts)
    return found


def spread(counts: Mapping[str, int], classes: Classes) -> dict[str, int]:
    """Counts by group, from those by class."""
    return {member: counts[name] for name, members in classes.items() for member in members}
