"""Search for units and for a schedule of merging tokens together. No model, no torch.

How much a merge of tokens saves depends on the width of the blocks that follow, and a unit's cost on how many tokens
reach its block. So schedules of merging come from one family: for a price of a MAC, the one that loses least
importance plus the price of the model's cost with all units (dynamic programming over blocks and lengths, exact). What
the other units must then lose is bounded by filling the budget with parts of units; for the most promising schedules
the exact search fills it with whole ones, and the one that loses least in all is taken.
"""

import contextlib
import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from optin_cli.artifacts.base import Vector32
from optin_cli.artifacts.costs import TokenCosts, merges_at
from optin_cli.artifacts.mask import Kept
from optin_cli.errors import BudgetError, UsageError
from optin_cli.searching.budget import out_of_reach
from optin_cli.searching.costs import Costs, importance_lost
from optin_cli.searching.limits import Limits
from optin_cli.searching.token_costs import block_macs, matching_macs

Solve = Callable[[Costs, Limits], Kept]
"""The search over all other groups."""
PRICES = 64
"""Prices of a MAC at which a schedule is looked for, over PRICE_RANGE times the mean importance of a MAC."""
PRICE_RANGE = (1e-4, 1e3)
TRIED = 3
"""Schedules, of those that promise to lose least, for which the exact search runs."""
MARGIN = 1e-9
"""Share of a budget left over where rounding would overrun it."""


class Schedules:
    """Schedules of merging: how many units of each block's group of tokens go, with what that loses and saves.

    importance: (units,) by group name; of each group the least important go first. names: groups of tokens by block.
    fixed: those that stay whole.
    """

    def __init__(
        self, importance: Mapping[str, Vector32], names: Mapping[str, str], costs: TokenCosts, fixed: set[str]
    ) -> None:
        self.costs, self.names = costs, names
        self.blocks = list(costs.blocks)[:-1]
        self.units = costs.length - costs.special
        self.order = {b: np.argsort(importance[names[b]].astype(np.float64), kind="stable") for b in self.blocks}
        self.lost = {
            b: np.concatenate([[0.0], np.cumsum(importance[names[b]].astype(np.float64)[self.order[b]])])
            for b in self.blocks
        }
        self.fixed = {block for block in self.blocks if names[block] in fixed}
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


def limits_with_tokens(limits: Limits, costs: Costs) -> Limits:
    """The limits, under a uniform layout without merging, which no config states (UsageError with a latency table)."""
    if costs.tokens is not None and limits.latency_table is not None:
        raise UsageError(
            "A latency table does not know what merging tokens saves.",
            hint="Leave out --keep-latency, or score without tokens.",
        )
    if limits.layout != "uniform":
        return limits
    names = [name for name in costs.groups if name in costs.token_groups.values()]
    return replace(limits, protect=(*limits.protect, *names))


def choose_with_tokens(solve: Solve, importance: Mapping[str, Vector32], costs: Costs, limits: Limits) -> Kept:
    """Choose units of all groups and a schedule of merging (BudgetError if no schedule and mask meet the limits).

    solve: chooses among all groups but tokens. limits: a share of MACs is of the whole, unmerged model. Tokens have no
    parameters, so that without a limit on MACs none merge.
    """
    if costs.tokens is None:
        return solve(costs, limits)
    names = costs.token_groups
    others = [name for name in costs.groups if name not in names.values()]
    fixed = {name for pattern in limits.protect for name in fnmatch.filter(names.values(), pattern)}
    protect = [p for p in limits.protect if fnmatch.filter(others, p) or not fnmatch.filter(names.values(), p)]
    limits = replace(limits, protect=tuple(protect))
    schedules = Schedules(importance, names, costs.tokens, fixed)
    family = schedules.family() if limits.keep_macs is not None else schedules.family()[:1]
    fills = [Fill(costs, limits, schedules.kept(gone), schedules.merging(gone)) for gone in family]

    def lost_of(kept: Kept) -> float:
        return importance_lost(kept, {name: importance[name] for name in kept})

    ranked = sorted((lost_of(fill.tokens) + fill.least_loss(importance), number) for number, fill in enumerate(fills))
    best: Kept | None = None
    least = np.inf
    for place, (bound, number) in enumerate(ranked):
        if bound >= least or (place >= TRIED and best is not None):
            break
        with contextlib.suppress(BudgetError):
            kept = fills[number].filled(solve)
            if (lost := lost_of(kept)) < least:
                best, least = kept, lost
    if best is None:
        best = fills[-1].filled_or_refused(solve)
    return {name: best[name] for name in costs.groups}


@dataclass(frozen=True)
class Fill:
    """A schedule of merging whose budget is to be filled with other units.

    tokens: the units of the token groups that stay. counts: tokens merged behind each block.
    """

    costs: Costs
    limits: Limits
    tokens: Kept
    counts: Sequence[int]

    def filled(self, solve: Solve) -> Kept:
        """Units of all groups under the limits (BudgetError, in shares of the merged model, if too little is left)."""
        merged, limit = self.costs.with_merging(self.counts), self.limits.keep_macs
        if limit is None:
            return {**solve(merged, self.limits), **self.tokens}
        asked = limit * self.costs.totals.macs / merged.totals.macs
        for margin in (0.0, MARGIN, 1e3 * MARGIN):
            others = solve(merged, replace(self.limits, keep_macs=min(asked * (1 - margin), 1.0)))
            kept = {**others, **self.tokens}
            if self.costs.remaining(kept)["macs"] <= limit:
                return kept
        raise BudgetError(f"A budget of {limit:.4g} of the macs cannot be met with tokens merged.")

    def filled_or_refused(self, solve: Solve) -> Kept:
        """The same for the schedule that saves most; its BudgetError states shares of the whole model."""
        try:
            return self.filled(solve)
        except BudgetError as error:
            name, least = error.reachable or ("", 0.0)
            if name != "macs" or self.limits.keep_macs is None:
                raise
            share = least * self.costs.with_merging(self.counts).totals.macs / self.costs.totals.macs
            raise out_of_reach("macs", self.limits.keep_macs, share) from error

    def least_loss(self, importance: Mapping[str, Vector32]) -> float:
        """Lower bound, by MACs alone, on the importance that other units lose (linear relaxation); inf if too few."""
        if self.limits.keep_macs is None:
            return 0.0
        merged = self.costs.with_merging(self.counts)
        excess = merged.totals.macs - self.limits.keep_macs * self.costs.totals.macs
        if excess <= 0:
            return 0.0
        values = np.concatenate([importance[name].astype(np.float64) for name in merged.groups])
        macs = np.concatenate([np.full(group.units, group.unit_macs) for group in merged.groups.values()])
        order = np.argsort(values / macs, kind="stable")
        saved, lost = np.cumsum(macs[order]), np.cumsum(values[order])
        return float(np.interp(excess, [0.0, *saved], [0.0, *lost])) if excess <= saved[-1] else np.inf
