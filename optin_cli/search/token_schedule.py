"""Importances and costs of units and tokens, and budgets, in; the kept units of every group out. No model, no torch.

How much a merge of tokens saves depends on how wide the blocks are that follow, and a unit's cost on how many tokens
reach its block. So schedules of merging come from one family: for a price of a MAC, the one that loses least
importance plus the price of what the model with all units then costs (dynamic programming over blocks and lengths,
exact). What the others must then lose is bounded by filling the budget with parts of units; for the most promising
schedules the exact search fills it with whole ones, and the one that loses least in all is taken.
"""

from __future__ import annotations

import contextlib
import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from optin_cli.artifacts.base import Totals
from optin_cli.artifacts.costs import KIND, GroupCost, TokenCosts, merges_at
from optin_cli.errors import BudgetError
from optin_cli.search.budget import out_of_reach
from optin_cli.search.token_costs import block_macs, matching_macs, reached, with_merging

if TYPE_CHECKING:
    from optin_cli.artifacts.mask import Kept
    from optin_cli.search.limits import Limits


Vector = NDArray[np.float32]


Vector64 = NDArray[np.float64]


Solve = Callable[[Mapping[str, GroupCost], Totals, "Limits"], "Kept"]
"""The search over all other groups, given their costs and the limits."""


PRICES = 64
"""Prices of a MAC at which a schedule is looked for, over PRICE_RANGE times the mean importance of a MAC."""


PRICE_RANGE = (1e-4, 1e3)


TRIED = 3
"""Schedules, of those that promise to lose least, for which the exact search runs."""


MARGIN = 1e-9
"""Share of a budget left over where rounding would overrun it."""


class Schedules:
    """Which tokens may merge where, what that loses and what it saves.

    A schedule says how many units of each block's group of tokens go.

    Args:
        importance: (units,) by group name; of each group the least important go first.
        fixed: groups of tokens that stay whole.
    """

    def __init__(
        self, importance: Mapping[str, Vector], groups: Mapping[str, GroupCost], costs: TokenCosts, fixed: set[str]
    ) -> None:
        self.costs = costs
        self.names = {group.block: name for name, group in groups.items() if group.kind == KIND}
        self.blocks = list(costs.blocks)[:-1]
        self.units = costs.length - costs.special
        self.order = {b: np.argsort(importance[self.names[b]].astype(np.float64), kind="stable") for b in self.blocks}
        self.lost = {
            b: np.concatenate([[0.0], np.cumsum(importance[self.names[b]].astype(np.float64)[self.order[b]])])
            for b in self.blocks
        }
        self.fixed = {block for block in self.blocks if self.names[block] in fixed}
        # Before a block: left tokens; behind it, for each number of units that go.
        left, gone = np.arange(self.units + 1)[:, None], np.arange(self.units)[None, :]
        self.after = -(-left * (self.units - gone) // self.units)
        self.matching = np.vectorize(lambda n, m: float(matching_macs(costs, int(n), int(n - m))))(left, self.after)
        self.cost = {
            name: np.array([block_macs(costs, name, costs.special + int(n)) for n in range(self.units + 1)])
            for name in costs.blocks
        }

    def at_price(self, price: float) -> list[int]:
        """Units that go of each block's group, for least importance lost plus price x MACs."""
        best = np.zeros(self.units + 1)  # of what follows a block, by the tokens that leave it
        choices: list[NDArray[np.intp]] = []
        for block, following in zip(reversed(self.blocks), reversed(list(self.costs.blocks)), strict=False):
            behind = best + price * self.cost[following]
            total = self.lost[block][None, :-1] + price * self.matching + behind[self.after]
            if block in self.fixed:
                total[:, 1:] = np.inf
            choices.append(total.argmin(axis=1))
            best = total.min(axis=1)
        left, gone = self.units, []
        for choice in reversed(choices):
            gone.append(int(choice[left]))
            left = int(self.after[left, gone[-1]])
        return gone

    def family(self) -> list[list[int]]:
        """Different schedules, from no merging to the most."""
        scale = max(sum(float(v[-1]) for v in self.lost.values()), 1e-30) / sum(
            float(self.cost[name][-1]) for name in self.costs.blocks
        )
        prices = np.geomspace(PRICE_RANGE[0] * scale, PRICE_RANGE[1] * scale, PRICES)
        found = [[0] * len(self.blocks), *(self.at_price(float(price)) for price in prices)]
        return [list(gone) for gone in dict.fromkeys(map(tuple, found))]

    def kept(self, gone: Sequence[int]) -> Kept:
        """The units that stay, by group name."""
        return {
            self.names[block]: sorted(int(u) for u in self.order[block][number:])
            for block, number in zip(self.blocks, gone, strict=True)
        }

    def merging(self, gone: Sequence[int]) -> list[int]:
        """How many tokens merge behind each block."""
        return [*merges_at([self.units - number for number in gone], self.units), 0]


def choose_with_tokens(
    solve: Solve,
    importance: Mapping[str, Vector],
    groups: Mapping[str, GroupCost],
    totals: Totals,
    costs: TokenCosts,
    limits: Limits,
) -> Kept:
    """Choose units of all groups and a schedule of merging.

    Args:
        solve: chooses among all groups but tokens.
        limits: a share of MACs is of the whole, unmerged model. Tokens have no parameters, so that without a limit on
            MACs none merge.

    Raises:
        BudgetError: no schedule and mask meet the limits.
    """
    token_names = [name for name, group in groups.items() if group.kind == KIND]
    others = [name for name in groups if name not in token_names]
    fixed = {name for pattern in limits.protect for name in fnmatch.filter(token_names, pattern)}
    protect = [p for p in limits.protect if fnmatch.filter(others, p) or not fnmatch.filter(token_names, p)]
    limits = replace(limits, protect=tuple(protect))
    schedules = Schedules(importance, groups, costs, fixed)
    family = schedules.family() if limits.keep_macs is not None else schedules.family()[:1]
    ranked = sorted(
        (
            _lost(schedules.kept(gone), importance)
            + relaxed(schedules.merging(gone), importance, groups, totals, costs, limits),
            number,
        )
        for number, gone in enumerate(family)
    )
    best: Kept | None = None
    least = np.inf
    for place, (bound, number) in enumerate(ranked):
        if bound >= least or (place >= TRIED and best is not None):
            break
        kept_tokens = schedules.kept(family[number])
        with contextlib.suppress(BudgetError):
            kept = {
                **_fill(solve, groups, totals, costs, limits, schedules.merging(family[number]), kept_tokens),
                **kept_tokens,
            }
            lost = _lost(kept, importance)
            if lost < least:
                best, least = kept, lost
    if best is None:
        best = _cheapest(solve, schedules, groups, totals, costs, limits, family[-1])
    return {name: best[name] for name in groups}


def _cheapest(
    solve: Solve,
    schedules: Schedules,
    groups: Mapping[str, GroupCost],
    totals: Totals,
    costs: TokenCosts,
    limits: Limits,
    gone: Sequence[int],
) -> Kept:
    """What the schedule that saves most allows; its BudgetError, with shares of the whole model, if that is nothing."""
    kept_tokens, counts = schedules.kept(gone), schedules.merging(gone)
    try:
        return {**_fill(solve, groups, totals, costs, limits, counts, kept_tokens), **kept_tokens}
    except BudgetError as error:
        name, least = error.reachable or ("", 0.0)
        if name != "macs" or limits.keep_macs is None:
            raise
        share = least * with_merging(groups, totals, costs, counts)[1].macs / totals.macs
        raise out_of_reach("macs", limits.keep_macs, share) from error


def relaxed(
    counts: Sequence[int],
    importance: Mapping[str, Vector],
    groups: Mapping[str, GroupCost],
    totals: Totals,
    costs: TokenCosts,
    limits: Limits,
) -> float:
    """No more than what other units must lose under a schedule, were parts of units cut too; infinite if all do not do.

    Of the limits, this knows the share of MACs alone.
    """
    if limits.keep_macs is None:
        return 0.0
    scaled, merged = with_merging(groups, totals, costs, counts)
    excess = merged.macs - limits.keep_macs * totals.macs
    if excess <= 0:
        return 0.0
    values = np.concatenate([importance[name].astype(np.float64) for name in scaled])
    macs = np.concatenate([np.full(group.units, group.unit_macs) for group in scaled.values()])
    order = np.argsort(values / macs, kind="stable")
    saved, lost = np.cumsum(macs[order]), np.cumsum(values[order])
    return float(np.interp(excess, [0.0, *saved], [0.0, *lost])) if excess <= saved[-1] else np.inf


def _fill(
    solve: Solve,
    groups: Mapping[str, GroupCost],
    totals: Totals,
    costs: TokenCosts,
    limits: Limits,
    counts: Sequence[int],
    kept_tokens: Kept,
) -> Kept:
    """The other groups' units under what a schedule leaves of the budget."""
    scaled, merged = with_merging(groups, totals, costs, counts)
    if limits.keep_macs is None:
        return solve(scaled, merged, limits)
    asked = limits.keep_macs * totals.macs / merged.macs
    for margin in (0.0, MARGIN, 1e3 * MARGIN):
        kept = solve(scaled, merged, replace(limits, keep_macs=min(asked * (1 - margin), 1.0)))
        if reached({**kept, **kept_tokens}, groups, totals, costs)["macs"] <= limits.keep_macs:
            return kept
    raise BudgetError(f"A budget of {limits.keep_macs:.4g} of the macs cannot be met with tokens merged.")


def _lost(kept: Mapping[str, Sequence[int]], importance: Mapping[str, Vector]) -> float:
    return float(
        sum(
            importance[n].astype(np.float64).sum() - importance[n].astype(np.float64)[list(k)].sum()
            for n, k in kept.items()
        )
    )
