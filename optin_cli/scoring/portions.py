"""Portions of a run's jobs, which fix the order in which its sums are added.

Each portion is summed from zero, and the sums of portions are added one after another. So the result is the same bits
whichever processes compute the portions, and in however many runs.
"""

import itertools
from collections.abc import Sequence

from optin_cli.errors import UsageError

PORTIONS = 8
"""Most portions of a run, and so most processes that can share it."""


def cut_portions(weights: Sequence[float], sharing: int = 1) -> list[range]:
    """Which jobs each portion has: consecutive ones of about equal weight, at least one.

    Args:
        weights: of the jobs. sharing: how many share them (UsageError if more than PORTIONS).
    """
    if sharing > PORTIONS:
        raise UsageError(
            f"The run was to be shared by {sharing}, but it is divided into {PORTIONS} portions at most.",
            hint=f"Share it by {PORTIONS} or fewer.",
        )
    whole, done = sum(weights) or 1.0, 0.0
    places = []
    for weight in weights:
        places.append(min(int(PORTIONS * (done + weight / 2) / whole), PORTIONS - 1))
        done += weight
    starts = [number for number, place in enumerate(places) if number == 0 or place != places[number - 1]]
    return [range(start, end) for start, end in itertools.pairwise([*starts, len(places)])]
