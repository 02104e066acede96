"""Portions of a run's jobs, which fix the order in which its sums are added.

Each portion is summed from zero, and the sums of portions are added one after another. So the result is the same bits
whichever processes compute the portions, and in however many runs.
"""

import itertools
from collections.abc import Callable, Sequence

import torch

from optin_cli.errors import UsageError
from optin_cli.processes.processes import Processes, Sending

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


def own_portions(portions: Sequence[range], processes: Processes) -> list[range]:
    """Those that this process computes: they take turns."""
    return list(portions[processes.rank :: processes.count])


def sum_portions(
    processes: Processes, portions: Sequence[range], measure: Callable[[range], Sequence[torch.Tensor]]
) -> list[torch.Tensor]:
    """The sums over all portions, on every process.

    They go round from one process to the next, each of which adds those of its own portion.

    Args:
        portions: at least one. measure: sums of a portion, tensors alike in number, shape, type and device for all.
    """
    totals: list[torch.Tensor] = []
    sending = Sending()
    for turn, portion in enumerate(portions):
        if turn % processes.count != processes.rank:
            continue
        mine = measure(portion)
        sending.wait()
        if turn and processes.count > 1:
            totals = [torch.empty_like(processes.sendable(tensor)) for tensor in mine]
            processes.receive(totals, (turn - 1) % processes.count)
            totals = [tensor.to(own.device) for tensor, own in zip(totals, mine, strict=True)]
        if turn:
            for total, own in zip(totals, mine, strict=True):
                total.add_(own)
        else:
            totals = list(mine)
        if processes.count > 1 and turn + 1 < len(portions):
            sent = [processes.sendable(tensor) for tensor in totals]
            sending = processes.send(None, sent, (turn + 1) % processes.count)
    sending.wait()
    return processes.copied(totals, (len(portions) - 1) % processes.count)
