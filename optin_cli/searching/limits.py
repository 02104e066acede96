"""Limits that a mask must respect, and the numbers of units that each group may keep. No model, no torch."""

import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from optin_cli.artifacts.costs import GroupCost
from optin_cli.artifacts.latency import LatencyTable, coarser
from optin_cli.errors import BudgetError, UsageError, did_you_mean
from optin_cli.options.search import Layout
from optin_cli.searching import decilm


@dataclass(frozen=True)
class Limits:
    """What a mask must respect.

    keep_macs, keep_parameters: largest share of the whole model (0 to 1) that may remain, None for no limit.
    round_to: kept columns (units x unit width) come in multiples of this, or all stay. minima: fewest units left in
    a group, by kind. protect: groups (names or patterns with *) that stay whole. layout: "uniform" for the same
    number of units in every block of a stack, one that the library's config can state; "deci" for that in all but
    neurons, whose width is a multiple of 256. keep_latency: largest share of the time that `latency_table` measured.
    """

    keep_macs: float | None = None
    keep_parameters: float | None = None
    round_to: int = 1
    minima: Mapping[str, int] | None = None
    protect: Sequence[str] = ()
    layout: Layout = "ragged"
    keep_latency: float | None = None
    latency_table: LatencyTable | None = None

    def require_shares(self) -> None:
        """Refuse shares of other than a part of the model (UsageError)."""
        for name, share in self.asked().items():
            if not 0 < share <= 1:
                raise UsageError(
                    f"The share of {name} to keep is {share}; expected a number above 0, at most 1.",
                    hint=f"For {share:g} %, pass {share / 100:g}." if 1 < share <= 100 else None,
                )

    def asked(self) -> dict[str, float]:
        """The budgets by name, as a mask records them."""
        named = {"macs": self.keep_macs, "parameters": self.keep_parameters, "latency": self.keep_latency}
        return {name: share for name, share in named.items() if share is not None}


def allowed_counts(name: str, group: GroupCost, limits: Limits) -> list[int]:
    """Allowed counts of kept units, ascending, ending in all (BudgetError if the group has fewer than must stay)."""
    least = max((limits.minima or {}).get(group.kind, 0), group.least)
    if least > group.units:
        raise BudgetError(f"{name} has {group.units} units, fewer than the asked minimum of {least}.")
    if limits.layout == "deci" and group.kind == decilm.NEURON:
        step = math.lcm(limits.round_to, decilm.MULTIPLE) // math.gcd(decilm.MULTIPLE, group.unit_width)
        levels = [k for k in range(step, group.units + 1, step) if k >= least]
        if not levels:
            raise BudgetError(
                f"{name} has {group.units} neurons, fewer than the {max(least, step)} that --layout deci, --round-to "
                "and --min-neurons leave at least.",
                hint=decilm.HINT,
            )
        return levels
    step = limits.round_to // math.gcd(limits.round_to, group.unit_width)
    levels = [k for k in range(0, group.units, step) if k >= least] + [group.units]
    return levels if limits.keep_latency is None else coarser(levels)


def protected_groups(groups: Mapping[str, GroupCost], patterns: Sequence[str]) -> set[str]:
    """Names of the groups that patterns spare (UsageError for a pattern that none fits)."""
    whole: set[str] = set()
    for pattern in patterns:
        found = fnmatch.filter(groups, pattern)
        if not found:
            raise UsageError(f"There is no group {pattern!r} to protect.", hint=did_you_mean(pattern, groups))
        whole |= set(found)
    return whole
