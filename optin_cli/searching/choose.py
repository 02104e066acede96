"""Choose the units that a mask keeps, from their importances, costs and budgets. No model, no torch.

Importance adds up over units and cost adds up over groups, and within a group units go in order of
importance, so the decision is how many each group keeps: an integer program.
"""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from optin_cli.artifacts.base import Vector32, Vector64
from optin_cli.artifacts.costs import GroupCost
from optin_cli.artifacts.mask import Kept
from optin_cli.artifacts.scores import Scores
from optin_cli.errors import UsageError
from optin_cli.options.search import LAYOUTS, Algorithm
from optin_cli.searching.budget import Row, make_latency_row, make_row, out_of_reach
from optin_cli.searching.costs import Costs
from optin_cli.searching.depth import choose_with_blocks
from optin_cli.searching.knapsack import solve_knapsack
from optin_cli.searching.limits import Limits, allowed_counts, protected_groups
from optin_cli.searching.token_schedule import choose_with_tokens
from optin_cli.searching.uniform import classes_of, merge_importance, merge_row, spread, uniform_levels, whole_words

ROUNDS = 8
"""Most integer programs solved one after another where groups share weights."""
SLACK = 1e-9
"""Share of the whole that is left over there, so that the rounding of a solver does not overrun the budget."""


def choose_units(
    importance: Mapping[str, Vector32], costs: Costs, limits: Limits, *, algorithm: Algorithm = "exact"
) -> Kept:
    """Choose the mask that loses least importance within the limits, among groups whose costs add up.

    importance: (units,) by group name, at least of all groups of `costs`. algorithm: "exact", or "optin" for the search
    of the OPTIN paper (the most important heads of all layers with the most important of all other units; MACs only).

    Raises BudgetError, which states the smallest reachable share, if no mask meets the limits, and UsageError for no
    budget, a share outside (0, 1], or an unknown group to protect.
    """
    if limits.layout != "ragged" and algorithm == "optin":
        raise UsageError(f"--algorithm paper orders the units of all layers and has no {limits.layout} layout.")
    if limits.layout not in LAYOUTS:
        raise UsageError(f"Unknown layout {limits.layout!r}.", hint=f"Known: {', '.join(LAYOUTS)}.")
    groups = costs.groups
    importance = {name: importance[name] for name in groups}
    rows = _rows(costs, limits)
    levels = {name: allowed_counts(name, group, limits) for name, group in groups.items()}
    whole = protected_groups(groups, limits.protect)
    levels |= {name: [groups[name].units] for name in whole}
    if limits.layout != "ragged":
        classes = classes_of(groups, limits.layout)
        levels = uniform_levels(groups, levels, whole, classes)
        rows = [merge_row(row, groups, classes) for row in rows]
        _require_reachable(rows, levels, f", or leave out --layout {limits.layout}{whole_words(groups)}")
        merged = merge_importance(importance, groups, classes)
        counts = spread(_choose_counts(_falling(merged), levels, rows), classes)
    else:
        _require_reachable(rows, levels)
        if algorithm == "optin":
            counts = _prefix_search(_falling(importance), groups, levels, rows)
        else:
            counts = _choose_counts(_falling(importance), levels, rows)
    order = {name: np.argsort(-values.astype(np.float64), kind="stable") for name, values in importance.items()}
    return {name: sorted(int(u) for u in order[name][: counts[name]]) for name in groups}


def _falling(importance: Mapping[str, Vector32]) -> dict[str, Vector64]:
    """Importances of each group, the largest first."""
    return {name: -np.sort(-values.astype(np.float64)) for name, values in importance.items()}


def _require_reachable(rows: Sequence[Row], levels: Mapping[str, list[int]], otherwise: str = "") -> None:
    """Refuse a budget that the lowest levels exceed; `otherwise`: what else may help."""
    for row in rows:
        lowest = {name: steps[0] for name, steps in levels.items()}
        if not row.holds(lowest):
            raise out_of_reach(row.name, row.share, (row.fixed + row.spent(lowest)) / row.total, otherwise)


def _rows(costs: Costs, limits: Limits) -> list[Row]:
    asked = limits.asked()
    if not asked:
        raise UsageError("No budget was given.", hint="Pass --keep-flops 0.5, --keep-params 0.5 or --keep-latency 0.5.")
    if limits.round_to < 1:
        raise UsageError(f"--round-to is {limits.round_to}; expected 1 or more.")
    rows = []
    for name, share in asked.items():
        if name != "latency":
            rows.append(make_row(name, costs, share))
        elif limits.latency_table is not None:
            rows.append(make_latency_row(limits.latency_table, costs, share))
        else:
            raise UsageError(
                "A latency budget needs measured times.", hint="Pass --latency-table, from optin profile --latency."
            )
    return rows


def _choose_counts(
    ranked: Mapping[str, Vector64], levels: Mapping[str, list[int]], rows: Sequence[Row]
) -> dict[str, int]:
    """The integer program, repeated where groups share weights and their cost is not a sum over groups.

    Each round bounds the shared cost from above by a sum that is exact at the last round's choice. That choice
    thus stays within the bound, so a round loses no importance against the one before, and none exceeds a budget.
    """
    counts = {name: steps[-1] for name, steps in levels.items()}
    if all(row.holds(counts) for row in rows):
        return counts
    lowest = {name: steps[0] for name, steps in levels.items()}
    if any(row.bound(lowest, counts) > row.limit for row in rows):
        counts = lowest
    best, gained = counts, -np.inf
    for _ in range(ROUNDS if any(row.pairs for row in rows) else 1):
        bounds = [row.curvature(counts) for row in rows]
        counts = _integer_program(ranked, levels, rows, bounds)
        gain = sum(float(ranked[n][:k].sum()) for n, k in counts.items())
        if gain <= gained:
            break
        best, gained = counts, gain
    return best


def _integer_program(
    ranked: Mapping[str, Vector64],
    levels: Mapping[str, list[int]],
    rows: Sequence[Row],
    curvature: Sequence[Mapping[str, float]],
) -> dict[str, int]:
    """Binary variables "group g reaches its level j"; gains fall with j, so levels fill from below by themselves."""
    steps: list[tuple[str, int, int]] = []
    after: list[int] = []
    for name, allowed in levels.items():
        # Steps of different sizes cost differently, so those of such a group must be constrained to come in order.
        irregular = len({high - low for low, high in itertools.pairwise(allowed)}) > 1
        irregular = irregular or any(name in row.curves for row in rows)
        for low, high in itertools.pairwise(allowed):
            after.append(len(steps) - 1 if irregular and low != allowed[0] else -1)
            steps.append((name, low, high))
    counts = {name: allowed[0] for name, allowed in levels.items()}
    if not steps:
        return counts
    gains = np.array([ranked[name][low:high].sum() for name, low, high in steps])
    matrix = np.array([[row.between(*step) for step in steps] for row in rows])
    limit = np.array([row.limit - sum(row.between(n, 0, k) for n, k in counts.items()) for row in rows])
    for number, bends in enumerate(curvature):
        if bends:
            matrix[number] += [bends.get(name, 0.0) * (high**2 - low**2) for name, low, high in steps]
            limit[number] -= sum(bend * counts[n] ** 2 for n, bend in bends.items()) + SLACK * rows[number].total
    chosen: dict[str, int] = dict.fromkeys(levels, 0)
    for (name, _, _), take in zip(steps, solve_knapsack(gains, matrix, limit, np.array(after)), strict=True):
        chosen[name] += int(take)
    return {name: levels[name][number] for name, number in chosen.items()}


def _prefix_search(
    falling: Mapping[str, Vector64],
    groups: Mapping[str, GroupCost],
    levels: Mapping[str, list[int]],
    rows: Sequence[Row],
) -> dict[str, int]:
    """OPTIN's own search: try every number of heads, fill the rest of the budget with the best other units.

    Units go in order of importance over all layers; counts are then rounded down to an allowed level.
    """
    if [row.name for row in rows] != ["macs"]:
        raise UsageError("--algorithm paper knows a FLOP budget only.", hint="Use --algorithm exact.")
    row = rows[0]
    cost = row.linear({name: group.units for name, group in groups.items()})
    ranked: dict[bool, list[tuple[float, str, float]]] = {True: [], False: []}
    for name, group in groups.items():
        ranked[group.kind == "head"] += [(float(-v), name, cost[name]) for v in falling[name][levels[name][0] :]]
    heads, others = (sorted(ranked[is_head]) for is_head in (True, False))
    (head_cost, head_gain), (other_cost, other_gain) = (
        np.cumsum([(0.0, 0.0), *((each, -loss) for loss, _, each in units)], axis=0).T for units in (heads, others)
    )
    room = row.limit - sum(cost[name] * levels[name][0] for name in groups)
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


def choose(scores: Scores, limits: Limits, algorithm: Algorithm = "exact") -> Kept:
    """Choose units by a scores file, and blocks or how tokens merge if it scores those; errors: `choose_units`."""

    def solve(costs: Costs, limits: Limits) -> Kept:
        return choose_units(scores.importance, costs, limits, algorithm=algorithm)

    def solve_blocks(costs: Costs, limits: Limits) -> Kept:
        return choose_with_blocks(solve, scores.importance, costs, limits)

    return choose_with_tokens(solve_blocks, scores.importance, Costs.of(scores.header), limits)
