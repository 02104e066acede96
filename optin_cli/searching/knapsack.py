"""Exact 0/1 knapsack with several limits."""

import contextlib
import ctypes
import math
import os
import sys
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from optin_cli.artifacts.base import Vector64

MOST_COMBINATIONS = 200_000
"""Up to how many combinations of counts are tried outright instead of by the integer program."""
NEAR = 1e-3
"""How far from the optimum the greedy choice may be to be taken at once, as a share of the gain that it forgoes: far
less than importances are known to."""
DUAL_TOLERANCE = 1e-6
"""How far reduced costs may be off: HiGHS solves linear programs to 1e-7, with gains of at most 1."""
MILP_GAP = 1e-6
MILP_NODES = 2000
"""When the integer program may stop: relative distance from the optimum, and nodes. A limit of time would make the
mask depend on the machine."""


@contextlib.contextmanager
def quiet_stdout() -> Iterator[None]:
    """Drop what compiled code prints meanwhile: HiGHS leaves notes on standard output, which is for data."""
    sys.stdout.flush()
    saved, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        if os.name == "posix":
            ctypes.CDLL(None).fflush(None)
        os.dup2(saved, 1)
        os.close(saved)
        os.close(nowhere)


def solve_knapsack(
    gains: Vector64, costs: Vector64, limits: Vector64, after: NDArray[np.intp] | None = None
) -> NDArray[np.bool_]:
    """Which items to take for the largest total gain: maximise gains @ x, costs @ x <= limits, x binary.

    Args:
        gains: (items,), not negative. costs: (limits, items), not negative. limits: (limits,), not negative.
        after: (items,), the item that must be taken before this one, or -1.

    Items of equal cost are taken best first, so with few distinct costs (heads and neurons, say) every count
    of the rarer ones is tried and the rest filled up: exact and immediate. Otherwise HiGHS decides.
    """
    classes, member = np.unique(costs.T, axis=0, return_inverse=True)
    counts = np.bincount(member.ravel(), minlength=len(classes))
    combinations = math.prod(int(c) + 1 for c in counts) // (int(counts.max()) + 1)
    if combinations <= MOST_COMBINATIONS and (after is None or (after < 0).all()):
        return _enumerate(gains, classes, member.ravel(), limits)
    return _solve_core(gains, costs, limits, np.full(gains.size, -1) if after is None else after)


def _enumerate(gains: Vector64, classes: Vector64, member: NDArray[np.intp], limits: Vector64) -> NDArray[np.bool_]:
    """Try every number of items of all cost classes but the largest, which takes what then fits."""
    ranked = [np.flatnonzero(member == c) for c in range(len(classes))]
    ranked = [items[np.argsort(-gains[items], kind="stable")] for items in ranked]
    totals = [np.concatenate([[0.0], np.cumsum(gains[items])]) for items in ranked]
    filler = max(range(len(classes)), key=lambda c: len(ranked[c]))
    others = [c for c in range(len(classes)) if c != filler]
    grid = np.zeros((0, 1), dtype=np.intp)
    if others:
        grid = np.indices([len(ranked[c]) + 1 for c in others]).reshape(len(others), -1)
    left = limits[:, None] - sum((classes[c][:, None] * grid[i] for i, c in enumerate(others)), np.zeros((1, 1)))
    unit = classes[filler][:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        room = np.where(unit > 0, np.floor(left / unit * (1 + 1e-12) + 1e-9), np.inf).min(axis=0)
    fits = np.clip(room, 0, len(ranked[filler])).astype(np.intp)
    gain = totals[filler][fits] + sum((totals[c][grid[i]] for i, c in enumerate(others)), np.zeros(1))
    gain = np.where((left >= -1e-9).all(axis=0), gain, -np.inf)
    best = int(np.argmax(gain))
    taken = np.zeros(gains.size, dtype=bool)
    taken[ranked[filler][: fits[best]]] = True
    for i, c in enumerate(others):
        taken[ranked[c][: grid[i, best]]] = True
    return taken


def _solve_core(gains: Vector64, costs: Vector64, limits: Vector64, after: NDArray[np.intp]) -> NDArray[np.bool_]:
    """The integer program over the items that the linear relaxation leaves open.

    An item whose reduced cost exceeds the gap between the relaxation and a feasible solution has the same
    value in every optimum. HiGHS stops within MILP_GAP of the optimum or after MILP_NODES.
    """
    from scipy.optimize import Bounds, LinearConstraint, linprog, milp

    value = gains / (float(gains.max()) or 1.0)
    relaxed = linprog(-value, A_ub=costs, b_ub=limits, bounds=(0, 1), method="highs")
    reduced = -value - costs.T @ relaxed.ineqlin.marginals
    feasible: NDArray[np.bool_] = np.zeros(gains.size, dtype=bool)
    left = limits.copy()
    for item in np.argsort(reduced, kind="stable"):
        if (costs[:, item] <= left).all() and (after[item] < 0 or feasible[after[item]]):
            feasible[item] = True
            left = left - costs[:, item]
    gap = max(-float(relaxed.fun) - float(value @ feasible), 0.0) + DUAL_TOLERANCE
    if gap <= NEAR * float(value[~feasible].sum()):
        return feasible
    taken: NDArray[np.bool_] = reduced < -gap
    core = np.flatnonzero(np.abs(reduced) <= gap)
    if not core.size:
        return taken
    place = {int(item): i for i, item in enumerate(core)}
    ordered = [(place[int(i)], place[int(after[i])]) for i in core if int(after[i]) in place]
    chains = np.zeros((len(ordered), core.size))
    for row, (late, early) in enumerate(ordered):
        chains[row, late], chains[row, early] = 1.0, -1.0
    closed = np.array([after[i] >= 0 and int(after[i]) not in place and not taken[after[i]] for i in core])
    with quiet_stdout():
        solution = milp(
            c=-value[core],
            constraints=[
                LinearConstraint(costs[:, core], ub=limits - costs @ taken),
                *([LinearConstraint(chains, ub=0)] if ordered else []),
            ],
            integrality=np.ones(core.size),
            bounds=Bounds(0, np.where(closed, 0, 1)),
            options={"mip_rel_gap": MILP_GAP, "node_limit": MILP_NODES},
        )
    # The limit leaves the best mask found, or none; the greedy one is feasible and within the gap.
    if solution.x is None or float(value @ taken) - float(solution.fun) < float(value @ feasible):
        return feasible
    taken[core] = solution.x > 0.5
    return taken
