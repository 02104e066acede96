"""The uniform layout against brute force."""

import itertools

import numpy as np
import pytest
from helpers.instances import SHARES, limits
from hypothesis import given, settings
from hypothesis import strategies as st

from optin_cli.artifacts.base import Totals
from optin_cli.artifacts.costs import ConfigCounts, GroupCost
from optin_cli.errors import BudgetError, UsageError
from optin_cli.searching.choose import choose_units
from optin_cli.searching.costs import Costs, importance_lost
from optin_cli.searching.limits import Limits


class Layers:
    """Layers of heads and neurons of equal sizes, and the model around them."""

    def __init__(self, heads, neurons, costs, rest, stock):
        self.groups, self.importance = {}, {}
        sizes = zip(("head", "neuron"), (heads, neurons), costs, stock, strict=True)
        for kind, layers, (macs, parameters, width), counts in sizes:
            for number, values in enumerate(layers):
                name = f"encoder.{number}.{kind}"
                self.importance[name] = np.array(values, np.float32)
                self.groups[name] = GroupCost(
                    kind=kind,
                    block=f"encoder.{number}",
                    units=len(values),
                    unit_width=width,
                    unit_macs=macs,
                    unit_parameters=parameters,
                    stock=counts,
                )
        groups = self.groups.values()
        macs = rest + sum(g.unit_macs * g.units for g in groups)
        parameters = rest + sum(g.unit_parameters * g.units for g in groups)
        self.totals = Totals(macs=int(macs), parameters=parameters, bytes=0)

    def choose(self, limits, **options):
        return choose_units(self.importance, Costs(self.groups, self.totals), limits, **options)

    def allowed(self, kind, limits):
        group = next(g for g in self.groups.values() if g.kind == kind)
        least = (limits.minima or {}).get(kind, 0)
        for count in range(max(1, least), group.units + 1):
            fits = count * group.unit_width % limits.round_to == 0 and group.config and group.config.allows(count)
            if fits or count == group.units:
                yield count

    def best(self, limits):
        """Least importance that any pair of counts loses, None where none meets the limits."""
        found = None
        for heads, neurons in itertools.product(self.allowed("head", limits), self.allowed("neuron", limits)):
            kept = {}
            for name, values in self.importance.items():
                order = np.argsort(-values, kind="stable")
                kept[name] = order[: heads if self.groups[name].kind == "head" else neurons].tolist()
            now = Costs(self.groups, self.totals).remaining(kept)
            if all(now[name] <= share + 1e-9 for name, share in limits.asked().items()):
                lost = importance_lost(kept, self.importance)
                found = lost if found is None else min(found, lost)
        return found


def layers_of(units):
    return st.integers(1, 3).flatmap(
        lambda number: st.lists(
            st.lists(st.floats(0, 1, width=16), min_size=units, max_size=units), min_size=number, max_size=number
        )
    )


COST = st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 2, 4]))

COUNTS = st.none() | st.builds(ConfigCounts, step=st.sampled_from([1, 2]), divisor_of=st.sampled_from([None, 12]))

INSTANCES = st.builds(
    Layers,
    st.integers(1, 5).flatmap(layers_of),
    st.integers(1, 9).flatmap(layers_of),
    st.tuples(COST, COST),
    st.integers(0, 30),
    st.tuples(COUNTS, COUNTS),
)

LIMITS = limits(layout=st.just("uniform"))


@settings(max_examples=200, deadline=None)
@given(INSTANCES, LIMITS)
def test_choice_is_the_best_of_all_pairs_of_counts(instance, limits):
    best = instance.best(limits)
    if best is None:
        with pytest.raises(BudgetError, match="smallest reachable share"):
            instance.choose(limits)
        return
    kept = instance.choose(limits)
    now = Costs(instance.groups, instance.totals).remaining(kept)
    assert all(now[name] <= share + 1e-9 for name, share in limits.asked().items())
    assert importance_lost(kept, instance.importance) == pytest.approx(best, abs=1e-4)
    for kind in ("head", "neuron"):
        counts = {len(units) for name, units in kept.items() if name.endswith(kind)}
        assert len(counts) == 1 and counts <= set(instance.allowed(kind, limits))
    for name, units in kept.items():
        values, gone = instance.importance[name], set(range(instance.groups[name].units)) - set(units)
        assert not gone or values[units].min() >= values[list(gone)].max()


@settings(max_examples=50, deadline=None)
@given(INSTANCES, SHARES)
def test_uniformity_never_gains(instance, share):
    try:
        uniform = instance.choose(Limits(keep_macs=share, layout="uniform"))
    except BudgetError:
        return
    ragged = instance.choose(Limits(keep_macs=share))
    assert importance_lost(ragged, instance.importance) <= importance_lost(uniform, instance.importance) + 1e-4


def layers():
    rng = np.random.default_rng(0)
    stock = (ConfigCounts(), ConfigCounts())
    return Layers(rng.random((3, 4)), rng.random((3, 12)), ((40, 40, 4), (9, 9, 1)), 50, stock)


@pytest.mark.parametrize(
    ("limits", "options", "message", "hint"),
    [
        ({"protect": ["encoder.0.*"]}, {}, "encoder.0.head is protected and encoder.1.head is not", "'*head'"),
        ({}, {"algorithm": "optin"}, "--algorithm paper", None),
        ({"layout": "square"}, {}, "Unknown layout 'square'", "ragged, uniform"),
    ],
)
def test_contradictions_are_usage_errors(limits, options, message, hint):
    with pytest.raises(UsageError) as caught:
        layers().choose(Limits(**({"keep_macs": 0.5, "layout": "uniform"} | limits)), **options)
    assert message in caught.value.message
    assert hint is None or hint in caught.value.hint


def test_whole_classes_can_be_protected():
    kept = layers().choose(Limits(keep_macs=0.7, layout="uniform", protect=["*.head"]))
    assert {len(units) for name, units in kept.items() if name.endswith("head")} == {4}


def test_layers_of_different_sizes_get_one_count():
    """As an earlier ragged cut leaves them: counts are what all have, and what no config states cannot stay."""
    instance = layers()
    name = "encoder.1.head"
    instance.groups[name] = instance.groups[name].model_copy(update={"units": 3})
    instance.importance[name] = instance.importance[name][:3]
    instance.totals = Totals(macs=instance.totals.macs - 40, parameters=1, bytes=0)
    kept = instance.choose(Limits(keep_macs=0.9, layout="uniform"))
    assert len({len(units) for name, units in kept.items() if name.endswith("head")}) == 1
    assert Costs(instance.groups, instance.totals).remaining(kept)["macs"] <= 0.9
    instance.groups = {n: g.model_copy(update={"config": None}) for n, g in instance.groups.items()}
    with pytest.raises(BudgetError, match="they have 3, 4 units and must stay whole"):
        instance.choose(Limits(keep_macs=0.9, layout="uniform"))
