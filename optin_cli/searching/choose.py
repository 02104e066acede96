"""Choose the units that a mask keeps, from their importances, costs and budgets. No model, no torch.

Importance adds up over units and cost adds up over groups, and within a group units go in order of
importance, so the decision is how many each group keeps: an integer program.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from optin_cli.artifacts.base import Options, Source, Vector32, require_description, require_source
from optin_cli.artifacts.mask import Budget, GroupMask, Kept, Mask
from optin_cli.artifacts.scores import Scores
from optin_cli.errors import UsageError
from optin_cli.options.search import LAYOUTS, Algorithm
from optin_cli.searching.budget import Row, make_latency_row, make_row, out_of_reach
from optin_cli.searching.costs import Costs, importance_lost
from optin_cli.searching.knapsack import solve_knapsack
from optin_cli.searching.limits import Limits, allowed_counts, protected_groups
from optin_cli.searching.prefix_search import prefix_search
from optin_cli.searching.token_schedule import choose_with_tokens, limits_with_tokens
from optin_cli.searching.uniform import (
    merge_importance,
    merge_row,
    require_expressible,
    spread,
    uniform_levels,
    whole_words,
)
from optin_cli.version import __version__

ROUNDS = 8
"""Most integer programs solved one after another where groups share weights."""
CARRIED = ("checkpoint", "architecture", "calibration")
"""Inputs of scores that a mask records too."""
SLACK = 1e-9
"""Share of the whole that is left over there, so that the rounding of a solver does not overrun the budget."""


def choose_units(
    importance: Mapping[str, Vector32], costs: Costs, limits: Limits, *, algorithm: Algorithm = "exact"
) -> Kept:
    """Choose the mask that loses least importance within the limits, among groups whose costs add up.

    Args:
        importance: (units,) by group name, at least of all groups of `costs`.
        algorithm: "exact", or "optin" for the search of the OPTIN paper (the most important heads of all layers
            with the most important of all other units; MACs only).

    Returns:
        kept unit indices by group name, ascending.

    Raises:
        BudgetError: no mask meets the limits; states the smallest reachable share.
        UsageError: no budget, a share outside (0, 1], or an unknown group to protect.
    """
    if limits.layout == "uniform" and algorithm == "optin":
        raise UsageError("--algorithm optin orders the units of all layers and has no uniform layout.")
    if limits.layout not in LAYOUTS:
        raise UsageError(f"Unknown layout {limits.layout!r}.", hint=f"Known: {', '.join(LAYOUTS)}.")
    groups = costs.groups
    importance = {name: importance[name] for name in groups}
    rows = _rows(costs, limits)
    levels = {name: allowed_counts(name, group, limits) for name, group in groups.items()}
    whole = protected_groups(groups, limits.protect)
    levels |= {name: [groups[name].units] for name in whole}
    if limits.layout == "uniform":
        levels = uniform_levels(groups, levels, whole)
        merged = merge_importance(importance, groups)
        rows = [merge_row(row, groups) for row in rows]
        _require_reachable(rows, levels, f", or leave out --layout uniform{whole_words(groups)}")
        counts = spread(_choose_counts(merged, _ranked(merged), levels, rows), groups)
    else:
        _require_reachable(rows, levels)
        if algorithm == "optin":
            counts = prefix_search(importance, groups, levels, rows)
        else:
            counts = _choose_counts(importance, _ranked(importance), levels, rows)
    order = _ranked(importance)
    return {name: sorted(int(u) for u in order[name][: counts[name]]) for name in groups}


def _ranked(importance: Mapping[str, Vector32]) -> dict[str, NDArray[np.intp]]:
    """Units by falling importance."""
    return {name: np.argsort(-values.astype(np.float64), kind="stable") for name, values in importance.items()}


def _require_reachable(rows: Sequence[Row], levels: Mapping[str, list[int]], otherwise: str = "") -> None:
    """Refuse a budget that the lowest levels exceed; `otherwise`: what else may help."""
    for row in rows:
        least = row.spent({name: steps[0] for name, steps in levels.items()})
        if least > row.limit + 1e-12 * row.total:
            raise out_of_reach(row.name, row.share, (row.fixed + least) / row.total, otherwise)


def _rows(costs: Costs, limits: Limits) -> list[Row]:
    asked = limits.asked()
    if not asked:
        raise UsageError("No budget was given.", hint="Pass --keep-flops 0.5, --keep-params 0.5 or --keep-latency 0.5.")
    if limits.round_to < 1:
        raise UsageError(f"--round-to is {limits.round_to}; expected 1 or more.")
    rows = []
    for name, share in asked.items():
        if not 0 < share <= 1:
            raise UsageError(f"The share of {name} to keep is {share}; expected a number above 0, at most 1.")
        if name != "latency":
            rows.append(make_row(name, costs, share))
        elif limits.latency_table is not None:
            rows.append(make_latency_row(limits.latency_table, costs.groups, share))
        else:
            raise UsageError(
                "A latency budget needs measured times.", hint="Pass --latency-table, from optin profile --latency."
            )
    return rows


def _choose_counts(
    importance: Mapping[str, Vector32],
    order: Mapping[str, NDArray[np.intp]],
    levels: Mapping[str, list[int]],
    rows: Sequence[Row],
) -> dict[str, int]:
    """The integer program, repeated where groups share weights and their cost is not a sum over groups.

    Each round bounds the shared cost from above by a sum that is exact at the last round's choice. That choice
    thus stays within the bound, so a round loses no importance against the one before, and none exceeds a budget.
    """
    counts = {name: steps[-1] for name, steps in levels.items()}
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
    importance: Mapping[str, Vector32],
    order: Mapping[str, NDArray[np.intp]],
    levels: Mapping[str, list[int]],
    rows: Sequence[Row],
    curvature: Sequence[Mapping[str, float]],
) -> dict[str, int]:
    """Binary variables "group g reaches its level j"; gains fall with j, so levels fill from below by themselves."""
    owners: list[str] = []
    gains: list[float] = []
    spans: list[tuple[int, int]] = []
    after: list[int] = []
    squares: list[int] = []
    for name, steps in levels.items():
        # Steps of different sizes cost differently, so those of such a group must be constrained to come in order.
        irregular = len({high - low for low, high in itertools.pairwise(steps)}) > 1
        irregular = irregular or any(name in row.curves for row in rows)
        ranked = importance[name].astype(np.float64)[order[name]]
        for low, high in itertools.pairwise(steps):
            owners.append(name)
            gains.append(float(ranked[low:high].sum()))
            after.append(len(spans) - 1 if irregular and low != steps[0] else -1)
            spans.append((low, high))
            squares.append(high**2 - low**2)
    counts = {name: steps[0] for name, steps in levels.items()}
    if not owners:
        return counts
    matrix = np.array([[row.between(n, *span) for n, span in zip(owners, spans, strict=True)] for row in rows])
    limit = np.array([row.limit - sum(row.between(n, 0, k) for n, k in counts.items()) for row in rows])
    for number, bends in enumerate(curvature):
        if bends:
            matrix[number] += [bends.get(n, 0.0) * square for n, square in zip(owners, squares, strict=True)]
            limit[number] -= sum(bend * counts[n] ** 2 for n, bend in bends.items()) + SLACK * rows[number].total
    taken = solve_knapsack(np.array(gains), matrix, limit, np.array(after))
    chosen: dict[str, int] = dict.fromkeys(levels, 0)
    for name, take in zip(owners, taken, strict=True):
        chosen[name] += int(take)
    return {name: levels[name][number] for name, number in chosen.items()}


def choose(scores: Scores, limits: Limits, algorithm: Algorithm = "exact") -> Kept:
    """Choose units by a scores file, and how tokens merge if it has scores of them.

    Raises:
        BudgetError, UsageError: as `choose_units` does.
    """

    def solve(costs: Costs, limits: Limits) -> Kept:
        return choose_units(scores.importance, costs, limits, algorithm=algorithm)

    return choose_with_tokens(solve, scores.importance, Costs.of(scores.header), limits)


def make_mask(
    scores: Scores,
    scores_source: Source,
    limits: Limits,
    *,
    algorithm: Algorithm = "exact",
    table_source: Source | None = None,
) -> Mask:
    """Choose units under the limits and record the outcome as a mask artifact.

    Args:
        scores: from `optin score`.
        scores_source: name and hash of the scores file, recorded as the mask's origin.
        table_source: name and hash of the latency table in `limits`.

    Raises:
        ArtifactError: the latency table is of another checkpoint or architecture description.
        BudgetError, UsageError: as `choose_units` does.
    """
    header, costs = scores.header, Costs.of(scores.header)
    if limits.latency_table is not None and table_source is not None:
        require_source(limits.latency_table, table_source.name, "checkpoint", header.inputs["checkpoint"])
        scored = f"{scores_source.name} was made"
        require_description(limits.latency_table, table_source.name, header.inputs.get("architecture"), scored)
    if limits.layout == "uniform":
        require_expressible(header.groups, header.architecture)
    limits = limits_with_tokens(limits, costs)
    kept = choose(scores, limits, algorithm)
    ragged = None if limits.layout == "ragged" else choose(scores, replace(limits, layout="ragged"), algorithm)
    now = costs.remaining(kept)
    timed: Options = {}
    if (table := limits.latency_table) is not None:
        now["latency"] = table.reached({name: len(units) for name, units in kept.items()})
        shape = table.workload.model_dump(mode="json")
        timed = {"latency": {"device": table.device, "threads": table.threads, **shape}}
    return Mask(
        optin_version=__version__,
        options={
            "criterion": header.criterion,
            "algorithm": algorithm,
            "round_to": limits.round_to,
            "minima": dict(limits.minima or {}),
            "protect": list(limits.protect),
            "layout": limits.layout,
            **timed,
        },
        inputs={
            "scores": scores_source,
            **{role: header.inputs[role] for role in CARRIED if role in header.inputs},
            **({} if table_source is None else {"latency_table": table_source}),
        },
        workload=header.workload,
        budget=Budget(asked=limits.asked(), reached=now),
        importance_lost=importance_lost(kept, scores.importance),
        ragged_importance_lost=None if ragged is None else importance_lost(ragged, scores.importance),
        groups={name: GroupMask(units=group.units, kept=kept[name]) for name, group in header.groups.items()},
    )
