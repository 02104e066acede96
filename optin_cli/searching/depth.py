"""Search for whole blocks to remove and for units to remove from the others, together. No model, no torch.

Blocks go in order of importance, so the decision is how many: for every number, the search over units fills the budget
with those of the blocks that stay, and the one that loses least importance in all is taken.
"""

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from optin_cli.artifacts.base import Vector32
from optin_cli.artifacts.mask import Kept
from optin_cli.errors import BudgetError
from optin_cli.searching.costs import Costs, importance_lost
from optin_cli.searching.limits import Limits, protected_groups

Solve = Callable[[Costs, Limits], Kept]
"""The search over units inside blocks."""


def removal_order(importance: Mapping[str, Vector32], costs: Costs, protect: Sequence[str]) -> list[str]:
    """Groups of whole blocks that may go, the least important first: those without any protected group."""
    spared = {costs.groups[name].block for name in protected_groups(costs.groups, protect)}
    loose = [name for name, group in costs.whole_blocks.items() if group.block not in spared]
    return sorted(loose, key=lambda name: float(importance[name][0]))


def choose_with_blocks(solve: Solve, importance: Mapping[str, Vector32], costs: Costs, limits: Limits) -> Kept:
    """Choose blocks and units (BudgetError if no number of blocks can meet the limits). solve: the search over units.

    Of a block that goes no unit is kept.
    """
    whole = costs.whole_blocks
    if not whole:
        return solve(costs, limits)
    order = removal_order(importance, costs, limits.protect)
    best: Kept | None = None
    least, refusal = np.inf, None
    for number in range(min(len(order), len(whole) - 1) + 1):
        gone = order[:number]
        lost = sum(float(importance[name][0]) for name in gone)
        if lost >= least:
            break
        left = costs.without(gone)
        protect = tuple(p for p in limits.protect if fnmatch.filter(left.groups, p))
        try:
            kept = solve(left, replace(limits, protect=protect))
        except BudgetError as error:
            refusal = error
            continue
        lost += importance_lost(kept, {name: importance[name] for name in kept})
        if lost < least:
            stay = {name: [] if name in gone else [0] for name in whole}
            best, least = {**{name: [] for name in costs.groups}, **kept, **stay}, lost
    if best is None:
        assert refusal is not None
        raise refusal
    return {name: best[name] for name in costs.groups}
