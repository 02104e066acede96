"""Latency budgets against brute force."""

import itertools

import numpy as np
import pytest
from helpers.latency import make_table
from hypothesis import given, settings
from hypothesis import strategies as st

from optin_cli.artifacts.base import Totals
from optin_cli.artifacts.costs import ConfigCounts, GroupCost, SharedCost
from optin_cli.artifacts.latency import Ladder
from optin_cli.errors import ArtifactError, BudgetError, UsageError
from optin_cli.searching.budget import make_row
from optin_cli.searching.choose import choose_units
from optin_cli.searching.costs import Costs, importance_lost
from optin_cli.searching.limits import Limits


class Timed:
    """Layers of heads and neurons whose times are measured, jumps, plateaus and noise included."""

    def __init__(self, groups, rest):
        self.groups, self.importance, ladders = {}, {}, {}
        for number, (kind, values, macs, times) in enumerate(groups):
            name = f"encoder.{number}.{kind}"
            units = len(values)
            cost = {"unit_macs": macs, "unit_parameters": macs, "config": ConfigCounts()}
            self.groups[name] = GroupCost(kind=kind, block=f"encoder.{number}", units=units, **cost)
            self.importance[name] = np.array(values, np.float32)
            counts = sorted({0, 1, units // 2, units})
            ladders[name] = Ladder(units=counts, ms=np.cumsum(times)[: len(counts)].tolist())
        macs = 5 + sum(g.unit_macs * g.units for g in self.groups.values())
        self.totals = Totals(macs=int(macs), parameters=int(macs), bytes=0)
        self.table = make_table(ladders, rest)

    def choose(self, **limits):
        found = Limits(latency_table=self.table, **limits)
        return choose_units(self.importance, Costs(self.groups, self.totals), found)

    def shares(self, kept):
        time = self.table.reached({name: len(units) for name, units in kept.items()})
        return Costs(self.groups, self.totals).remaining(kept) | {"latency": time}

    def best(self, keep_latency, keep_macs):
        """Least importance that any mask within both budgets loses, None where there is none."""
        found = None
        order = {name: np.argsort(-values, kind="stable").tolist() for name, values in self.importance.items()}
        for counts in itertools.product(*(range(g.units + 1) for g in self.groups.values())):
            kept = {name: order[name][:k] for name, k in zip(self.groups, counts, strict=True)}
            now = self.shares(kept)
            if now["latency"] <= keep_latency + 1e-9 and now["macs"] <= (keep_macs or 1) + 1e-9:
                lost = importance_lost(kept, self.importance)
                found = lost if found is None else min(found, lost)
        return found


GROUPS = st.lists(
    st.tuples(
        st.sampled_from(["head", "neuron"]),
        st.lists(st.floats(0, 1, width=16), min_size=1, max_size=5),
        st.integers(1, 9),
        st.lists(st.floats(-0.5, 4, width=16), min_size=4, max_size=4),
    ),
    min_size=1,
    max_size=4,
)

INSTANCES = st.builds(Timed, GROUPS, st.floats(0.5, 9, width=16))

SHARES = st.integers(20, 100).map(lambda percent: percent / 100)


@settings(max_examples=150, deadline=None)
@given(INSTANCES, SHARES, st.none() | SHARES)
def test_choice_is_the_best_of_all_masks(instance, keep_latency, keep_macs):
    best = instance.best(keep_latency, keep_macs)
    limits = {"keep_latency": keep_latency, "keep_macs": keep_macs}
    if best is None:
        with pytest.raises(BudgetError, match="smallest reachable share"):
            instance.choose(**limits)
        return
    kept = instance.choose(**limits)
    now = instance.shares(kept)
    assert now["latency"] <= keep_latency + 1e-6 and now["macs"] <= (keep_macs or 1) + 1e-9
    assert importance_lost(kept, instance.importance) == pytest.approx(best, abs=1e-4)


@settings(max_examples=50, deadline=None)
@given(INSTANCES, SHARES)
def test_a_uniform_layout_keeps_within_time_too(instance, keep_latency):
    try:
        kept = instance.choose(keep_latency=keep_latency, layout="uniform")
    except BudgetError:
        return
    assert instance.shares(kept)["latency"] <= keep_latency + 1e-6
    for kind in ("head", "neuron"):
        assert len({len(units) for name, units in kept.items() if name.endswith(kind)}) <= 1


def test_large_instances_are_met_closely():
    rng = np.random.default_rng(0)
    groups = [("head", rng.exponential(size=12), 2e5, [0, 0.3, 0.6, 0.6]) for _ in range(6)]
    groups += [("neuron", rng.exponential(size=1536), 7e4, [0, 0.2, 1.0, 1.1]) for _ in range(6)]
    instance = Timed(groups, 4.0)
    for share in (0.4, 0.6, 0.8):
        now = instance.shares(instance.choose(keep_latency=share))["latency"]
        assert share - 0.01 < now <= share + 1e-6


def test_a_budget_needs_its_table_and_its_units():
    instance = Timed([("head", [1.0, 0.5], 3, [0, 1, 1, 1])], 1.0)
    with pytest.raises(UsageError, match="needs measured times"):
        choose_units(
            instance.importance,
            Costs(instance.groups, instance.totals),
            Limits(keep_latency=0.5),
        )
    instance.table = make_table({"encoder.0.head": Ladder(units=[0, 1, 3], ms=[0, 1, 2])})
    with pytest.raises(ArtifactError, match="has 3 units; it has 2"):
        instance.choose(keep_latency=0.9)


@given(st.integers(1, 4), st.integers(1, 6), st.data())
def test_the_bound_of_shared_costs_is_one_and_is_exact_where_it_is_taken(heads, dims, data):
    """Also where one of the two groups has no unit left."""
    shared = {"b": SharedCost(macs=3.0, parameters=2)}
    costs = Costs(
        {
            "a": GroupCost(
                kind="head-dim", block="x", units=dims, unit_macs=3.0 * heads, unit_parameters=2 * heads, shared=shared
            ),
            "b": GroupCost(kind="head", block="x", units=heads, unit_macs=3.0 * dims + 5, unit_parameters=2 * dims),
        },
        Totals(macs=3 * heads * dims + 5 * heads + 7, parameters=2 * heads * dims + 7, bytes=0),
    )
    row = make_row("macs", costs, 0.5)
    counts = st.fixed_dictionaries({"a": st.integers(0, dims), "b": st.integers(0, heads)})
    around, other = data.draw(counts), data.draw(counts)
    assert row.bound(around, around) == pytest.approx(row.spent(around))
    assert row.bound(other, around) >= row.spent(other) * (1 - 1e-12)
