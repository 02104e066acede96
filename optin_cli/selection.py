"""Importances, unit costs and budgets in; the kept units of every group out. No model, no torch.

Importance adds up over units and cost adds up over groups, and within a group units go in order of
importance, so the decision is how many each group keeps: an integer program.
"""

from __future__ import annotations

import fnmatch
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from optin_cli import __version__, token_spending
from optin_cli.artifacts import Budget, GroupCost, GroupMask, Mask, Source, Totals
from optin_cli.errors import BudgetError, UsageError, did_you_mean
from optin_cli.knapsack import solve_knapsack
from optin_cli.scores import Scores
from optin_cli.spending import Row, make_row, out_of_reach, reached
from optin_cli.token_search import choose_with_tokens

Algorithm = Literal["exact", "optin"]
ALGORITHMS: tuple[Algorithm, ...] = ("exact", "optin")
Vector = NDArray[np.float32]
Vector64 = NDArray[np.float64]
Kept = dict[str, list[int]]
ROUNDS = 8
"""Most integer programs solved one after another where groups share weights."""
SLACK = 1e-9
"""Share of the whole that is left over there, so that the rounding of a solver does not overrun the budget."""


@dataclass(frozen=True)
class Limits:
    """What a mask must respect.

    keep_macs, keep_parameters: largest share of the whole model (0 to 1) that may remain, None for no limit.
    round_to: kept columns (units x block) come in multiples of this, or all stay. minima: fewest units left in
    a group, by kind. protect: groups (names or patterns with *) that stay whole.
    """

    keep_macs: float | None = None
    keep_parameters: float | None = None
    round_to: int = 1
    minima: Mapping[str, int] | None = None
    protect: Sequence[str] = ()

    def asked(self) -> dict[str, float]:
        """The budgets by name, as a mask records them."""
        named = {"macs": self.keep_macs, "parameters": self.keep_parameters}
        return {name: share for name, share in named.items() if share is not None}


def choose_units(
    importance: Mapping[str, Vector],
    groups: Mapping[str, GroupCost],
    totals: Totals,
    limits: Limits,
    *,
    blocks: Mapping[str, int],
    algorithm: Algorithm = "exact",
) -> Kept:
    """Choose the mask that loses least importance within the limits.

    Args:
        importance: (units,) by group name.
        groups: unit costs by group name.
        totals: whole-model cost that shares refer to.
        blocks: columns a unit, by group name, for `round_to`.
        algorithm: "exact", or "optin" for the search of the OPTIN paper (the most important heads of all layers
            with the most important of all other units; MACs only).

    Returns:
        kept unit indices by group name, ascending.

    Raises:
        BudgetError: no mask meets the limits; states the smallest reachable share.
        UsageError: no budget, a share outside (0, 1], or an unknown group to protect.
    """
    rows = _rows(groups, totals, limits)
    levels = {name: _levels(name, group, limits, blocks[name]) for name, group in groups.items()}
    _protect(levels, groups, limits.protect)
    for row in rows:
        least = row.spent({name: levels[name][0] for name in groups})
        if least > row.limit + 1e-12 * row.total:
            raise out_of_reach(row.name, row.share, (row.fixed + least) / row.total)
    order = {name: np.argsort(-importance[name].astype(np.float64), kind="stable") for name in groups}
    if algorithm == "optin":
        counts = _prefix_search(importance, groups, levels, rows)
    else:
        counts = _choose_counts(importance, order, groups, levels, rows)
    return {name: sorted(int(u) for u in order[name][: counts[name]]) for name in groups}


def importance_lost(kept: Mapping[str, Sequence[int]], importance: Mapping[str, Vector]) -> float:
    """Sum of the importances of all units that a mask removes."""
    return float(
        sum(v.astype(np.float64).sum() - v.astype(np.float64)[list(kept[n])].sum() for n, v in importance.items())
    )


def _levels(name: str, group: GroupCost, limits: Limits, block: int) -> list[int]:
    """Allowed counts of kept units, ascending, ending in all of them."""
    least = max((limits.minima or {}).get(group.kind, 0), group.least)
    if least > group.units:
        raise BudgetError(f"{name} has {group.units} units, fewer than the asked minimum of {least}.")
    step = limits.round_to // math.gcd(limits.round_to, block)
    return [k for k in range(0, group.units, step) if k >= least] + [group.units]


def _protect(levels: dict[str, list[int]], groups: Mapping[str, GroupCost], patterns: Sequence[str]) -> None:
    for pattern in patterns:
        found = fnmatch.filter(groups, pattern)
        if not found:
            raise UsageError(f"There is no group {pattern!r} to protect.", hint=did_you_mean(pattern, groups))
        for name in found:
            levels[name] = [groups[name].units]


def _rows(groups: Mapping[str, GroupCost], totals: Totals, limits: Limits) -> list[Row]:
    asked = limits.asked()
    if not asked:
        raise UsageError("No budget was given.", hint="Pass --keep-flops 0.5 or --keep-params 0.5.")
    if limits.round_to < 1:
        raise UsageError(f"--round-to is {limits.round_to}; expected 1 or more.")
    rows = []
    for name, share in asked.items():
        if not 0 < share <= 1:
            raise UsageError(f"The share of {name} to keep is {share}; expected a number above 0, at most 1.")
        rows.append(make_row(name, groups, totals, share))
    return rows


def _choose_counts(
    importance: Mapping[str, Vector],
    order: Mapping[str, NDArray[np.intp]],
    groups: Mapping[str, GroupCost],
    levels: Mapping[str, list[int]],
    rows: Sequence[Row],
) -> dict[str, int]:
    """The integer program, repeated where groups share weights and their cost is not a sum over groups.

    Each round bounds the shared cost from above by a sum that is exact at the last round's choice. That choice
    thus stays within the bound, so a round loses no importance against the one before, and none exceeds a budget.
    """
    counts = {name: group.units for name, group in groups.items()}
    lowest = {name: steps[0] for name, steps in levels.items()}
    if any(row.bound(lowest, counts) > row.limit for row in rows):
        counts = lowest
    best, gained = counts, -np.inf
    for _ in range(ROUNDS if any(row.pairs for row in rows) else 1):
        bounds = [row.curvature(counts) for row in rows]
        counts = _integer_program(importance, order, levels, rows, bounds)
        gain = sum(float(importance[n].astype(np.float64)[order[n][:k]].sum()) for n, k in counts.items())
        if gain <= gained:
            break
        best, gained = counts, gain
    return best


def _integer_program(
    importance: Mapping[str, Vector],
    order: Mapping[str, NDArray[np.intp]],
    levels: Mapping[str, list[int]],
    rows: Sequence[Row],
    curvature: Sequence[Mapping[str, float]],
) -> dict[str, int]:
    """Binary variables "group g reaches its level j"; gains fall with j, so levels fill from below by themselves."""
    owners: list[str] = []
    gains: list[float] = []
    sizes: list[int] = []
    after: list[int] = []
    squares: list[int] = []
    for name, steps in levels.items():
        # A last step of another size costs otherwise, so the steps of such a group must be told to come in order.
        irregular = len(steps) > 1 and steps[-1] - steps[-2] != steps[1] - steps[0]
        ranked = importance[name].astype(np.float64)[order[name]]
        for low, high in itertools.pairwise(steps):
            owners.append(name)
            gains.append(float(ranked[low:high].sum()))
            after.append(len(sizes) - 1 if irregular and low != steps[0] else -1)
            sizes.append(high - low)
            squares.append(high**2 - low**2)
    counts = {name: steps[0] for name, steps in levels.items()}
    if not owners:
        return counts
    matrix = np.array([[row.own[name] * size for name, size in zip(owners, sizes, strict=True)] for row in rows])
    limit = np.array([row.limit - sum(row.own[n] * counts[n] for n in counts) for row in rows])
    for number, bends in enumerate(curvature):
        if bends:
            matrix[number] += [bends.get(n, 0.0) * square for n, square in zip(owners, squares, strict=True)]
            limit[number] -= sum(bend * counts[n] ** 2 for n, bend in bends.items()) + SLACK * rows[number].total
    taken = solve_knapsack(np.array(gains), matrix, limit, np.array(after))
    chosen: dict[str, int] = dict.fromkeys(levels, 0)
    for name, take in zip(owners, taken, strict=True):
        chosen[name] += int(take)
    return {name: levels[name][number] for name, number in chosen.items()}


def _prefix_search(
    importance: Mapping[str, Vector],
    groups: Mapping[str, GroupCost],
    levels: Mapping[str, list[int]],
    rows: Sequence[Row],
) -> dict[str, int]:
    """OPTIN's search: try every number of heads, fill the rest of the budget with the best other units.

    Units go in order of importance over all layers; counts are then rounded down to an allowed level.
    """
    if [row.name for row in rows] != ["macs"]:
        raise UsageError("--algorithm optin knows a FLOP budget only.", hint="Use --algorithm exact.")
    row = rows[0]
    cost = row.linear({name: group.units for name, group in groups.items()})
    ranked: dict[bool, list[tuple[float, str, float]]] = {True: [], False: []}
    for name, group in groups.items():
        values = np.sort(importance[name].astype(np.float64))[::-1][levels[name][0] :]
        ranked[group.kind == "head"] += [(float(-v), name, cost[name]) for v in values]
    heads, others = (sorted(ranked[is_head]) for is_head in (True, False))
    room = row.limit - sum(cost[name] * levels[name][0] for name in groups)
    head_cost = np.concatenate([[0.0], np.cumsum([c for _, _, c in heads])])
    head_gain = np.concatenate([[0.0], np.cumsum([-v for v, _, _ in heads])])
    other_cost = np.concatenate([[0.0], np.cumsum([c for _, _, c in others])])
    other_gain = np.concatenate([[0.0], np.cumsum([-v for v, _, _ in others])])
    best = (-np.inf, 0, 0)
    for number in range(len(head_cost)):
        left = room - head_cost[number]
        if left < 0:
            break
        fits = int(np.searchsorted(other_cost, left * (1 + 1e-12), side="right")) - 1
        best = max(best, (float(head_gain[number] + other_gain[fits]), number, fits))
    counts = {name: steps[0] for name, steps in levels.items()}
    for _, name, _ in heads[: best[1]] + others[: best[2]]:
        counts[name] += 1
    return {name: max(k for k in levels[name] if k <= count) for name, count in counts.items()}


def make_mask(scores: Scores, scores_source: Source, limits: Limits, *, algorithm: Algorithm = "exact") -> Mask:
    """Choose units under the limits and record the outcome as a mask artifact.

    Args:
        scores: from `optin score`.
        scores_source: name and hash of the scores file, recorded as the mask's origin.

    Raises:
        BudgetError, UsageError: see `choose_units`.
    """
    header = scores.header
    blocks = {name: group.unit_width for name, group in header.groups.items()}

    def solve(groups: Mapping[str, GroupCost], totals: Totals, limits: Limits) -> Kept:
        importance = {name: scores.importance[name] for name in groups}
        return choose_units(importance, groups, totals, limits, blocks=blocks, algorithm=algorithm)

    if header.tokens is None:
        kept = solve(header.groups, header.totals, limits)
        share = reached(kept, header.groups, header.totals)
    else:
        kept = choose_with_tokens(solve, scores.importance, header.groups, header.totals, header.tokens, limits)
        share = token_spending.reached(kept, header.groups, header.totals, header.tokens)
    return Mask(
        optin_version=__version__,
        options={
            "algorithm": algorithm,
            "round_to": limits.round_to,
            "minima": dict(limits.minima or {}),
            "protect": list(limits.protect),
        },
        inputs={"scores": scores_source, "checkpoint": header.inputs["checkpoint"]},
        workload=header.workload,
        budget=Budget(asked=limits.asked(), reached=share),
        importance_lost=importance_lost(kept, scores.importance),
        groups={name: GroupMask(units=group.units, kept=kept[name]) for name, group in header.groups.items()},
    )
