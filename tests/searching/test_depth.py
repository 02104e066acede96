"""The joint search for whole blocks and units, against every choice there is."""

import itertools

import numpy as np
import pytest
from helpers.latency import make_table

from optin_cli.artifacts.base import Totals
from optin_cli.artifacts.costs import ConfigCounts, GroupCost
from optin_cli.artifacts.latency import Ladder
from optin_cli.errors import BudgetError, UsageError
from optin_cli.searching.choose import choose_units
from optin_cli.searching.costs import Costs, importance_lost
from optin_cli.searching.depth import choose_with_blocks
from optin_cli.searching.limits import Limits

BLOCKS, UNITS = 4, 3
REST = 40


def invented(seed=0, whole=1.0):
    """A model that does not exist. whole: importance of blocks over that of what is in them."""
    draw = np.random.default_rng(seed)
    groups, importance = {}, {}
    for block in (f"encoder.{number}" for number in range(BLOCKS)):
        macs, size = int(draw.integers(50, 60)), int(draw.integers(5, 9))
        counts = ConfigCounts()
        groups[f"{block}.neuron"] = GroupCost(
            kind="neuron", block=block, units=UNITS, unit_macs=macs, unit_parameters=size, config=counts
        )
        groups[f"{block}.block"] = GroupCost(
            kind="block",
            block=block,
            units=1,
            unit_macs=UNITS * macs + 20,
            unit_parameters=UNITS * size + 2,
            config=counts,
        )
        values = np.sort(draw.random(UNITS)).astype(np.float32)
        importance |= {f"{block}.neuron": values, f"{block}.block": values.sum(keepdims=True) * np.float32(whole)}
    macs, parameters = (
        sum(getattr(groups[n], f"unit_{c}") for n in groups if n.endswith("block")) for c in ("macs", "parameters")
    )
    return importance, Costs(groups, Totals(macs=macs + REST, parameters=parameters + REST, bytes=0))


def solve_for(importance):
    def solve(costs, limits):
        return choose_units(importance, costs, limits)

    return solve


def lost_by(kept, importance, costs):
    return importance_lost(costs.within_blocks(kept), importance)


def best_of_all(importance, costs, limits):
    """Least importance lost by nested sets of blocks with any numbers of units of the others."""
    order = sorted(costs.whole_blocks, key=lambda name: importance[name][0])
    least = np.inf
    for number in range(BLOCKS):
        gone = {name.removesuffix(".block") for name in order[:number]}
        for counts in itertools.product(range(UNITS + 1), repeat=BLOCKS):
            kept = {}
            for place, count in enumerate(counts):
                block = f"encoder.{place}"
                kept[f"{block}.block"] = [] if block in gone else [0]
                kept[f"{block}.neuron"] = [] if block in gone else list(range(UNITS - count, UNITS))
            reached = costs.remaining(kept)
            if all(reached[name] <= share + 1e-9 for name, share in limits.asked().items()):
                least = min(least, lost_by(kept, importance, costs))
    return least


@pytest.mark.parametrize("whole", [0.3, 0.8, 1.0, 3.0])
@pytest.mark.parametrize(
    "limits", [Limits(keep_macs=0.7), Limits(keep_macs=0.4), Limits(keep_macs=0.6, keep_parameters=0.5)]
)
def test_it_is_the_best_there_is(whole, limits):
    for seed in range(3):
        importance, costs = invented(seed, whole)
        kept = choose_with_blocks(solve_for(importance), importance, costs, limits)
        assert list(kept) == list(costs.groups)
        assert all(costs.remaining(kept)[name] <= share + 1e-9 for name, share in limits.asked().items())
        assert lost_by(kept, importance, costs) == pytest.approx(best_of_all(importance, costs, limits))
        for name in costs.whole_blocks:
            assert kept[name] or not kept[f"{name.removesuffix('.block')}.neuron"]


def test_what_a_dropped_block_costs_and_loses_is_counted_once():
    importance, costs = invented()
    kept = {name: list(range(group.units)) for name, group in costs.groups.items()}
    kept |= {"encoder.1.block": [], "encoder.1.neuron": []}
    saved = costs.groups["encoder.1.block"]
    assert costs.remaining(kept) == pytest.approx(
        {
            "macs": 1 - saved.unit_macs / costs.totals.macs,
            "parameters": 1 - saved.unit_parameters / costs.totals.parameters,
        }
    )
    assert lost_by(kept, importance, costs) == pytest.approx(float(importance["encoder.1.block"][0]))


def test_protected_blocks_stay_and_so_does_one():
    importance, costs = invented(whole=0.01)
    solve = solve_for(importance)
    kept = choose_with_blocks(solve, importance, costs, Limits(keep_macs=0.3, protect=("encoder.2.neuron",)))
    assert kept["encoder.2.block"] == [0] and kept["encoder.2.neuron"] == [0, 1, 2]
    assert any(not kept[name] for name in costs.whole_blocks)
    kept = choose_with_blocks(solve, importance, costs, Limits(keep_macs=0.9, protect=("*.block",)))
    assert all(kept[name] for name in costs.whole_blocks)
    with pytest.raises(UsageError, match=r"no group 'encoder\.9"):
        choose_with_blocks(solve, importance, costs, Limits(keep_macs=0.9, protect=("encoder.9.*",)))
    with pytest.raises(BudgetError, match="smallest reachable share"):
        choose_with_blocks(solve, importance, costs, Limits(keep_macs=0.01))


def test_a_uniform_layout_is_that_of_the_blocks_that_stay():
    importance, costs = invented(whole=0.5)
    kept = choose_with_blocks(solve_for(importance), importance, costs, Limits(keep_macs=0.4, layout="uniform"))
    staying = [name.removesuffix(".block") for name in costs.whole_blocks if kept[name]]
    assert 0 < len(staying) < BLOCKS
    assert len({len(kept[f"{block}.neuron"]) for block in staying}) == 1
    assert costs.remaining(kept)["macs"] <= 0.4


def test_measured_time_counts_whole_blocks():
    """Thinning saves next to no time here, but a block that does not run does."""
    importance, costs = invented(whole=2.0)
    ladders = {name: Ladder(units=[0, g.units], ms=[0.0, 0.1]) for name, g in costs.groups.items()}
    ladders |= {name: Ladder(units=[0, 1], ms=[0.0, 5.0]) for name in costs.whole_blocks}
    table = make_table({n: lad for n, lad in ladders.items() if n in costs.whole_blocks}, rest=10.0)
    table = table.model_copy(update={"groups": ladders})
    limits = Limits(keep_latency=0.6, latency_table=table)
    kept = choose_with_blocks(solve_for(importance), importance, costs, limits)
    gone = [name for name in costs.whole_blocks if not kept[name]]
    assert len(gone) == 3, "30 ms, of which 18 may stay: 10 and one block of 5"
    counts = {name: len(units) for name, units in costs.within_blocks(kept).items()}
    assert table.reached(counts) <= 0.6
