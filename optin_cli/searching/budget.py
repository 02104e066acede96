"""Budgets as rows of an integer program: what numbers of kept units cost, weights that two groups share included.

Costs add up over groups but for weights that two groups index (a convolution between pruned channels), which cost in
proportion to the product of both counts:

    cost = fixed + sum_g own_g n_g + sum_ab p_ab n_a n_b
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from optin_cli.artifacts.base import Vector64
from optin_cli.artifacts.latency import LatencyTable
from optin_cli.errors import ArtifactError, BudgetError
from optin_cli.searching.costs import Costs

TIME_UNITS = 1e4
"""Units of time that the whole model takes: integer programs like numbers that are neither tiny nor huge."""


@dataclass(frozen=True)
class Row:
    """One budget, in units of the cheapest unit's cost.

    own: cost of a unit of each group by itself. pairs: (group, group, cost of a unit of each together). fixed:
    what no mask removes. share: of `total` that may remain. curves: cost of 0, 1, … units of a group (units + 1,),
    never falling, beside `own`. units: of each group that is in a pair.
    """

    name: str
    own: dict[str, float]
    pairs: tuple[tuple[str, str, float], ...]
    fixed: float
    total: float
    share: float
    curves: Mapping[str, Vector64] = field(default_factory=dict)
    units: Mapping[str, int] = field(default_factory=dict)

    @property
    def limit(self) -> float:
        """Largest cost of all groups together."""
        return self.share * self.total - self.fixed

    def between(self, name: str, low: int, high: int) -> float:
        """Additional cost of a group with `high` units over `low`, by itself."""
        curve = self.curves.get(name)
        return self.own[name] * (high - low) + (0.0 if curve is None else float(curve[high] - curve[low]))

    def spent(self, counts: Mapping[str, int]) -> float:
        """Cost of all groups for a number of kept units of each."""
        alone = sum(self.between(name, 0, counts[name]) for name in self.own)
        return alone + sum(cost * counts[a] * counts[b] for a, b, cost in self.pairs)

    def holds(self, counts: Mapping[str, int]) -> bool:
        """Whether a number of kept units of each group is within the limit, give or take rounding."""
        return self.spent(counts) <= self.limit + 1e-12 * self.total

    def linear(self, units: Mapping[str, int]) -> dict[str, float]:
        """Costs of units that add up to no less than `spent`: n_a n_b <= N_a N_b (n_a / N_a + n_b / N_b) / 2."""
        cost = dict(self.own)
        for a, b, each in self.pairs:
            cost[a] += each * units[b] / 2
            cost[b] += each * units[a] / 2
        return cost

    def bound(self, counts: Mapping[str, int], around: Mapping[str, int]) -> float:
        """An upper bound of `spent` that is exact at `around`, by its `curvature` there."""
        bends = self.curvature(around)
        return sum(self.between(name, 0, n) + bends.get(name, 0.0) * n * n for name, n in counts.items())

    def curvature(self, counts: Mapping[str, int]) -> dict[str, float]:
        """k_g such that sum_g own_g n_g + k_g n_g^2 is no less than `spent`, and equal to it at `counts`.

        By the inequality of means, n_a n_b <= (r n_a^2 + n_b^2 / r) / 2 for any r, with equality at r = n_b / n_a.
        Where n_a is 0 there, n_a n_b <= N_b n_a^2.
        """
        found: dict[str, float] = {}
        for a, b, each in self.pairs:
            few, other = (a, b) if counts[a] == 0 else (b, a)
            if counts[few] == 0:
                found[few] = found.get(few, 0.0) + each * self.units[other]
                continue
            ratio = counts[b] / counts[a]
            found[a] = found.get(a, 0.0) + each * ratio / 2
            found[b] = found.get(b, 0.0) + each / ratio / 2
        return found


def out_of_reach(name: str, asked: float, reachable: float, otherwise: str = "") -> BudgetError:
    """The error for an unreachable budget, which rounds the reachable share up. otherwise: what else may help."""
    return BudgetError(
        f"A budget of {asked:.4g} of the {name} cannot be met: "
        f"the smallest reachable share is {math.ceil(reachable * 1e4 - 1e-8) / 1e4:.4f}.",
        hint=f"Ask for more, or lower --min-heads, --min-neurons or the protected groups{otherwise}.",
        reachable=(name, reachable),
    )


def make_row(name: str, costs: Costs, share: float) -> Row:
    """The budget of `name` ("macs" or "parameters"). Weights shared with a group not listed count as they are whole."""
    macs, groups, totals = name == "macs", costs.groups, costs.totals
    own = {g: c.unit_macs if macs else float(c.unit_parameters) for g, c in groups.items()}
    pairs = [
        (a, b, shared.macs if macs else float(shared.parameters))
        for a, c in groups.items()
        for b, shared in c.shared.items()
        if b in groups
    ]
    unit = min((c for c in own.values() if c > 0), default=1.0)
    for a, b, each in pairs:
        own[a] -= each * groups[b].units
        own[b] -= each * groups[a].units
    total = float(totals.macs if macs else totals.parameters)
    prunable = sum(own[g] * groups[g].units for g in groups)
    prunable += sum(each * groups[a].units * groups[b].units for a, b, each in pairs)
    scaled = tuple((a, b, each / unit) for a, b, each in pairs)
    gone = sum(c.unit_macs if macs else float(c.unit_parameters) for c in costs.dropped.values())
    fixed = (total - prunable - gone) / unit
    units = {name: groups[name].units for pair in scaled for name in pair[:2]}
    return Row(name, {g: c / unit for g, c in own.items()}, scaled, fixed, total / unit, share, units=units)


def make_latency_row(table: LatencyTable, costs: Costs, share: float) -> Row:
    """The budget of measured time; what the table lacks is part of the rest (ArtifactError: other numbers of units)."""
    groups, measured = costs.groups, table.curves()
    curves = {name: curve for name, curve in measured.items() if name in groups}
    for name, curve in curves.items():
        if len(curve) != groups[name].units + 1:
            raise ArtifactError(
                f"The latency table says that {name} has {len(curve) - 1} units; it has {groups[name].units}.",
                hint="Measure the checkpoint again with optin profile --latency.",
            )
    curves = {name: TIME_UNITS * curve for name, curve in curves.items()}
    gone = TIME_UNITS * sum(float(measured[name][-1]) for name in costs.dropped if name in measured)
    fixed = TIME_UNITS - sum(float(curve[-1]) for curve in curves.values()) - gone
    return Row("latency", dict.fromkeys(groups, 0.0), (), fixed, TIME_UNITS, share, curves)
