"""Bisect for the smallest share that is within a limit."""

from collections.abc import Callable

PLACES = 4
"""Decimal places of the shares that are asked for."""
RESOLUTION = 0.002
"""The search ends when the smallest share is known this well."""


def find_smallest(within: Callable[[float], bool], smallest: float, *, evaluations: int) -> float | None:
    """Bisect for the smallest share that is within a limit, taking it that larger shares are within it too.

    within: asked at most `evaluations` times, for shares from `smallest` (the least that can be reached) to 1. Returns
    the smallest of those within the limit, None if none is.
    """
    low, high, best = smallest, 1.0, None
    share = 0.5 if smallest < 0.5 else _between(low, high)
    for _ in range(evaluations):
        if within(share):
            best = high = share
        else:
            low = share
        if high - low <= RESOLUTION:
            break
        share = _between(low, high)
    return best


def _between(low: float, high: float) -> float:
    return min(high, max(low, round((low + high) / 2, PLACES)))
