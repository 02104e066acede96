"""The OPTIN paper's own search. No model, no torch."""

from collections.abc import Mapping, Sequence

import numpy as np

from optin_cli.artifacts.base import Vector32
from optin_cli.artifacts.costs import GroupCost
from optin_cli.errors import UsageError
from optin_cli.searching.budget import Row


def prefix_search(
    importance: Mapping[str, Vector32],
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
