"""The search against brute force on small instances, and its laws on random ones."""

import itertools
import re

import numpy as np
import pytest
from helpers.instances import INSTANCES, LIMITS, SHARES, SLACK, Instance, generic
from hypothesis import given, settings
from hypothesis import strategies as st

from optin_cli.artifacts.base import Source, Totals, Workload
from optin_cli.artifacts.costs import GroupCost, SharedCost
from optin_cli.artifacts.scores import GroupScores, Scores, ScoresHeader
from optin_cli.errors import BudgetError
from optin_cli.searching import knapsack
from optin_cli.searching.choose import choose_units
from optin_cli.searching.costs import Costs
from optin_cli.searching.limits import Limits
from optin_cli.searching.search import search


@pytest.fixture(params=["enumeration", "core"])
def path(request, monkeypatch):
    if request.param == "core":
        monkeypatch.setattr(knapsack, "MOST_COMBINATIONS", 0)
    return request.param


def test_gains_below_the_tolerance_of_the_solver_do_not_break_the_budget():
    instance = Instance([("head", 1, 1, 1, [6e-8]), ("head", 2, 1, 1, [1.0, 1.0, 1.0])])
    limits = Limits(keep_macs=0.75, round_to=4)
    assert instance.choose(limits) == {"encoder.0.head": [], "encoder.1.head": [0, 1, 2]}


@pytest.mark.parametrize("combinations", [knapsack.MOST_COMBINATIONS, 0], ids=["enumeration", "core"])
@settings(max_examples=100, deadline=None)
@given(INSTANCES, LIMITS)
def test_choice_is_the_best_of_all_masks(combinations, instance, limits):
    best = instance.best(limits)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knapsack, "MOST_COMBINATIONS", combinations)
        if best is None:
            with pytest.raises(BudgetError, match="cannot be met"):
                instance.choose(limits)
            return
        kept = instance.choose(limits)
    now = instance.reached(kept)
    assert all(now[name] <= share + SLACK for name, share in limits.asked().items())
    assert instance.lost(kept) == pytest.approx(best, abs=1e-5)
    for name, units in kept.items():
        assert units == sorted(set(units))
        assert len(units) in instance.levels(name, limits)
        values, gone = instance.importance[name], set(range(instance.groups[name].units)) - set(units)
        assert not (units and gone) or values[units].min() >= values[list(gone)].max()


@settings(max_examples=100, deadline=None)
@given(INSTANCES, LIMITS, SHARES)
def test_a_larger_budget_never_loses_more(instance, limits, share):
    low, high = sorted([limits.keep_macs, share])
    try:
        less = instance.choose(Limits(keep_macs=low, round_to=limits.round_to))
    except BudgetError:
        return
    more = instance.choose(Limits(keep_macs=high, round_to=limits.round_to))
    assert instance.lost(more) <= instance.lost(less) + 1e-5


@settings(max_examples=100, deadline=None)
@given(INSTANCES, st.sampled_from(["macs", "parameters"]), st.integers(0, 3), st.integers(1, 4))
def test_the_stated_smallest_share_is_accepted(instance, budget, head, round_to):
    smallest = min(g.units for g in instance.groups.values())
    options = {"minima": {"head": min(head, smallest)}, "round_to": round_to, "protect": list(instance.groups)[:1]}
    with pytest.raises(BudgetError) as caught:
        instance.choose(Limits(**{f"keep_{budget}": 1e-6}, **options))
    stated = float(re.search(r"smallest reachable share is ([\d.]+)\.$", caught.value.message).group(1))
    kept = instance.choose(Limits(**{f"keep_{budget}": stated}, **options))
    assert instance.reached(kept)[budget] <= stated + SLACK
    assert stated - instance.reached(instance.choose(Limits(**{f"keep_{budget}": stated}, **options)))[budget] < 1e-4


def test_equal_runs_and_any_order_of_groups_give_the_same_mask(path):
    instance = generic()
    for algorithm in ("exact", "optin"):
        limits = Limits(keep_macs=0.6, round_to=8)
        first = instance.choose(limits, algorithm=algorithm)
        assert instance.choose(limits, algorithm=algorithm) == first
        turned = generic()
        turned.groups = dict(reversed(turned.groups.items()))
        assert turned.choose(limits, algorithm=algorithm) == first


def test_limits_are_respected_together(path):
    instance = generic()
    limits = Limits(
        keep_macs=0.75, keep_parameters=0.8, round_to=8, minima={"head": 1, "neuron": 8}, protect=["encoder.0.*"]
    )
    kept = instance.choose(limits)
    now = instance.reached(kept)
    assert now["macs"] <= 0.75 and now["parameters"] <= 0.8
    assert kept["encoder.0.head"] == [0, 1, 2, 3]
    assert all(len(kept[n]) >= (1 if "head" in n else 8) for n in kept)
    assert all(len(kept[n]) % 8 == 0 for n in kept if "neuron" in n)


@pytest.mark.parametrize("share", [1, 1.0])
def test_a_whole_budget_keeps_everything(path, share):
    instance = generic()
    kept = instance.choose(Limits(keep_macs=share))
    assert instance.lost(kept) == 0
    assert instance.reached(kept) == {"macs": 1, "parameters": 1}


def test_units_without_importance_still_give_a_mask(path):
    instance = Instance([("neuron", 1, 3, 3, [0.0] * 5), ("head", 4, 7, 7, [0.0] * 2)], rest=4)
    assert instance.reached(instance.choose(Limits(keep_macs=0.5)))["macs"] <= 0.5


def test_masks_nest_no_better_than_they_should(path):
    """An irregular last step (10 units in fours) must come after the regular ones."""
    instance = Instance([("neuron", 1, 5, 5, [0.9, 0.8] + [0.1] * 8), ("neuron", 1, 3, 3, [0.5] * 10)], rest=7)
    for percent in range(10, 101, 5):
        limits = Limits(keep_macs=percent / 100, round_to=4)
        best = instance.best(limits)
        if best is None:
            continue
        kept = instance.choose(limits)
        assert instance.lost(kept) == pytest.approx(best, abs=1e-6)
        assert instance.reached(kept)["macs"] <= percent / 100 + SLACK
        assert {len(units) for units in kept.values()} <= {0, 4, 8, 10}


def test_mask_records_what_was_asked_and_reached():
    instance = generic()
    origin = {"checkpoint": Source(name="tiny", sha256="c" * 64)}
    header = ScoresHeader(
        optin_version="0",
        options={},
        inputs=origin,
        family="bert",
        architecture="Bert",
        criterion="trajectory",
        workload=Workload(seq_len=16),
        totals=instance.totals,
        groups={n: GroupScores(**g.model_dump(), estimator="sketch", samples=1) for n, g in instance.groups.items()},
    )
    scores = Scores(header, instance.importance)
    mask = search(scores, Limits(keep_macs=0.6, round_to=8))
    kept = {name: group.kept for name, group in mask.groups.items()}
    assert kept == instance.choose(Limits(keep_macs=0.6, round_to=8))
    assert mask.budget.asked == {"macs": 0.6}
    assert mask.budget.reached == instance.reached(kept)
    assert mask.importance_lost == instance.lost(kept)
    assert mask.inputs == origin | {"scores": scores.source("scores")}


# Groups that share weights


def chain(widths, seed=0):
    """Convolutions in a row: what is between two of them costs the product of both widths."""
    rng = np.random.default_rng(seed)
    groups, importance = {}, {}
    for i, units in enumerate(widths):
        name = f"features.{i}.channel"
        own = 3.0
        shared = {f"features.{i + 1}.channel": SharedCost(macs=2.0, parameters=1)} if i + 1 < len(widths) else {}
        before, after = (widths[i - 1] if i else 0), (widths[i + 1] if i + 1 < len(widths) else 0)
        groups[name] = GroupCost(
            kind="channel",
            block=f"features.{i}",
            units=units,
            unit_macs=own + 2.0 * (before + after),
            unit_parameters=3 + before + after,
            least=1,
            shared=shared,
        )
        importance[name] = rng.exponential(size=units).astype(np.float32)
    pairs = sum(a * b for a, b in itertools.pairwise(widths))
    macs = int(10 + 3 * sum(widths) + 2 * pairs)
    return importance, groups, Totals(macs=macs, parameters=10 + 3 * sum(widths) + pairs, bytes=0)


def cost_of(counts):
    return 10 + 3 * sum(counts) + 2 * sum(a * b for a, b in itertools.pairwise(counts))


@pytest.mark.parametrize("share", [0.9, 0.7, 0.5, 0.3])
@pytest.mark.parametrize("seed", range(3))
def test_shared_weights_against_brute_force(share, seed):
    widths = (6, 4, 5)
    importance, groups, totals = chain(widths, seed)
    kept = choose_units(importance, Costs(groups, totals), Limits(keep_macs=share))
    counts = [len(units) for units in kept.values()]
    assert Costs(groups, totals).remaining(kept)["macs"] == pytest.approx(cost_of(counts) / totals.macs)
    assert cost_of(counts) <= share * totals.macs and min(counts) >= 1
    ranked = [np.sort(values.astype(np.float64))[::-1] for values in importance.values()]
    gains = {
        c: sum(r[:n].sum() for r, n in zip(ranked, c, strict=True))
        for c in itertools.product(*(range(1, w + 1) for w in widths))
        if cost_of(c) <= share * totals.macs
    }
    assert sum(r[:n].sum() for r, n in zip(ranked, counts, strict=True)) >= 0.9 * max(gains.values())


@pytest.mark.parametrize("algorithm", ["exact", "optin"])
def test_shared_weights_within_every_budget(algorithm):
    importance, groups, totals = chain((16, 24, 8, 12))
    for share in (0.2, 0.35, 0.6, 0.95):
        kept = choose_units(importance, Costs(groups, totals), Limits(keep_macs=share), algorithm=algorithm)
        now = Costs(groups, totals).remaining(kept)["macs"]
        assert now <= share
        assert algorithm == "optin" or now > share - 0.06
    least = cost_of([1] * 4) / totals.macs
    with pytest.raises(BudgetError, match="cannot be met"):
        choose_units(importance, Costs(groups, totals), Limits(keep_macs=least - 0.001))
    kept = choose_units(importance, Costs(groups, totals), Limits(keep_macs=least + 1e-6))
    assert [len(units) for units in kept.values()] == [1] * 4


@pytest.mark.parametrize("option", ["keep_macs", "keep_parameters"])
@pytest.mark.parametrize("seed", range(3))
def test_the_whole_of_shared_weights_keeps_everything(option, seed):
    importance, groups, totals = chain((16, 24, 8, 12), seed)
    importance = {name: values**16 for name, values in importance.items()}  # some units matter next to nothing
    kept = choose_units(importance, Costs(groups, totals), Limits(**{option: 1.0}))
    assert [len(units) for units in kept.values()] == [16, 24, 8, 12]
