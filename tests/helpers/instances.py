"""Searches on models that do not exist: groups, importances, costs, and the best mask by brute force."""

import itertools

import numpy as np
from hypothesis import strategies as st

from optin_cli.artifacts.base import Totals
from optin_cli.artifacts.costs import GroupCost
from optin_cli.searching.choose import choose_units
from optin_cli.searching.costs import Costs, importance_lost
from optin_cli.searching.limits import Limits

SLACK = 1e-9


class Instance:
    """Groups, their importances and the whole model around them."""

    def __init__(self, groups, rest=0):
        self.groups, self.importance, self.blocks = {}, {}, {}
        for i, (kind, block, macs, parameters, values) in enumerate(groups):
            name = f"encoder.{i}.{kind}"
            cost = {"unit_width": block, "unit_macs": macs, "unit_parameters": parameters}
            self.groups[name] = GroupCost(kind=kind, block=f"encoder.{i}", units=len(values), **cost)
            self.importance[name] = np.array(values, np.float32)
            self.blocks[name] = block
        macs = rest + sum(g.unit_macs * g.units for g in self.groups.values())
        parameters = rest + sum(g.unit_parameters * g.units for g in self.groups.values())
        self.totals = Totals(macs=int(macs), parameters=parameters, bytes=0)

    def choose(self, limits, **options):
        return choose_units(self.importance, Costs(self.groups, self.totals), limits, **options)

    def reached(self, kept):
        return Costs(self.groups, self.totals).remaining(kept)

    def lost(self, kept):
        return importance_lost(kept, self.importance)

    def levels(self, name, limits):
        group, least = self.groups[name], (limits.minima or {}).get(self.groups[name].kind, 0)
        fits = [k for k in range(group.units) if k * self.blocks[name] % limits.round_to == 0 and k >= least]
        return [group.units] if name in limits.protect else [*fits, group.units]

    def best(self, limits):
        """Least importance any allowed mask loses, None where none meets the limits."""
        ranked = {n: np.sort(v.astype(np.float64)) for n, v in self.importance.items()}
        least = None
        for counts in itertools.product(*(self.levels(n, limits) for n in self.groups)):
            kept = {n: range(k) for n, k in zip(self.groups, counts, strict=True)}
            now = self.reached(kept)
            if all(now[name] <= share + SLACK for name, share in limits.asked().items()):
                lost = sum(
                    float(ranked[n][: self.groups[n].units - k].sum()) for n, k in zip(ranked, counts, strict=True)
                )
                least = lost if least is None else min(lost, least)
        return least


VALUES = st.lists(st.floats(0, 1, width=16), min_size=1, max_size=6)

GROUPS = st.lists(
    st.tuples(
        st.sampled_from(["head", "neuron"]), st.sampled_from([1, 2, 4]), st.integers(1, 9), st.integers(1, 9), VALUES
    ),
    min_size=1,
    max_size=4,
)

INSTANCES = st.builds(Instance, GROUPS, st.integers(0, 30))

SHARES = st.integers(1, 100).map(lambda percent: percent / 100)


def limits(**more):
    return st.builds(
        Limits,
        keep_macs=SHARES,
        keep_parameters=st.none() | SHARES,
        round_to=st.sampled_from([1, 2, 3, 4]),
        minima=st.fixed_dictionaries({"head": st.integers(0, 1), "neuron": st.integers(0, 1)}),
        **more,
    )


LIMITS = limits()


def generic(seed=0, kinds=("head", "neuron") * 3):
    """A small model whose importances are all different."""
    rng = np.random.default_rng(seed)
    sizes = {"head": (4, 8, 80), "neuron": (24, 1, 11)}
    groups = [(k, sizes[k][1], sizes[k][2], sizes[k][2] // 2, rng.random(sizes[k][0]) ** 3) for k in kinds]
    return Instance(groups, rest=500)
