"""The search against brute force on small instances, and its limits, errors and laws on random ones."""

import ctypes
import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optin_cli.artifacts.base import Source, Totals, Workload
from optin_cli.artifacts.costs import GroupCost, SharedCost
from optin_cli.artifacts.scores import GroupScores, Scores, ScoresHeader
from optin_cli.errors import BudgetError, UsageError
from optin_cli.searching import knapsack
from optin_cli.searching.choose import choose_units, importance_lost, make_mask
from optin_cli.searching.costs import Costs
from optin_cli.searching.knapsack import solve_knapsack
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
LIMITS = st.builds(
    Limits,
    keep_macs=SHARES,
    keep_parameters=st.none() | SHARES,
    round_to=st.sampled_from([1, 2, 3, 4]),
    minima=st.fixed_dictionaries({"head": st.integers(0, 1), "neuron": st.integers(0, 1)}),
)


@pytest.fixture(params=["enumeration", "core"])
def path(request, monkeypatch):
    if request.param == "core":
        monkeypatch.setattr(knapsack, "MOST_COMBINATIONS", 0)
    return request.param


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


@settings(max_examples=100, deadline=None)
@given(INSTANCES, SHARES, st.sampled_from([1, 2]))
def test_the_search_of_the_paper_is_within_budget_and_never_better(instance, share, round_to):
    limits = Limits(keep_macs=share, round_to=round_to)
    try:
        exact = instance.choose(limits)
    except BudgetError:
        return
    paper = instance.choose(limits, algorithm="optin")
    assert instance.reached(paper)["macs"] <= share + SLACK
    assert instance.lost(paper) >= instance.lost(exact) - 1e-5
    assert all(len(units) in instance.levels(name, limits) for name, units in paper.items())


@st.composite
def knapsacks(draw):
    items, rows = draw(st.integers(1, 8)), draw(st.integers(1, 2))
    numbers = st.lists(st.integers(0, 20), min_size=items, max_size=items)
    costs = np.array([draw(numbers) for _ in range(rows)], float)
    limits = np.array([draw(st.integers(0, 60)) for _ in range(rows)], float)
    return np.array(draw(numbers), float), costs, limits


@pytest.mark.parametrize("combinations", [knapsack.MOST_COMBINATIONS, 0], ids=["enumeration", "core"])
@settings(max_examples=100, deadline=None)
@given(knapsacks())
def test_knapsack_is_the_best_of_all_subsets(combinations, problem):
    gains, costs, limits = problem
    subsets = np.array(list(itertools.product([0, 1], repeat=gains.size)))
    best = (subsets @ gains)[(subsets @ costs.T <= limits).all(axis=1)].max()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knapsack, "MOST_COMBINATIONS", combinations)
        taken = solve_knapsack(gains, costs, limits)
    assert (costs @ taken <= limits).all()
    assert gains @ taken == pytest.approx(best, abs=1e-4)


def test_items_wait_for_the_one_before_them():
    # Alone, the last item is by far the best for its cost, but it may only follow the first.
    gains, costs, after = np.array([1.0, 5.0, 3.0]), np.array([[4.0, 1.0, 2.0]]), np.array([-1, 0, -1])
    take = lambda limit: solve_knapsack(gains, costs, np.array([limit]), after).tolist()  # noqa: E731
    assert take(4.0) == [False, False, True]
    assert take(5.0) == [True, True, False]


def generic(seed=0, kinds=("head", "neuron") * 3):
    """A small model whose importances are all different."""
    rng = np.random.default_rng(seed)
    sizes = {"head": (4, 8, 80), "neuron": (24, 1, 11)}
    groups = [(k, sizes[k][1], sizes[k][2], sizes[k][2] // 2, rng.random(sizes[k][0]) ** 3) for k in kinds]
    return Instance(groups, rest=500)


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


@pytest.mark.parametrize(
    ("limits", "message", "hint"),
    [
        (Limits(), "No budget was given", "--keep-flops"),
        (Limits(keep_macs=0.0), "expected a number above 0", None),
        (Limits(keep_macs=1.5), "expected a number above 0, at most 1", None),
        (Limits(keep_parameters=float("nan")), "share of parameters to keep is nan", None),
        (Limits(keep_macs=0.5, round_to=0), "expected 1 or more", None),
        (Limits(keep_macs=0.5, protect=["encoder.9.head"]), "no group 'encoder.9.head'", "Did you mean encoder."),
    ],
)
def test_wrong_limits_are_usage_errors(limits, message, hint):
    with pytest.raises(UsageError) as caught:
        generic().choose(limits)
    assert message in caught.value.message
    assert hint is None or hint in caught.value.hint


def test_limits_that_no_mask_meets():
    with pytest.raises(BudgetError, match="has 4 units, fewer than the asked minimum of 5"):
        generic().choose(Limits(keep_macs=0.5, minima={"head": 5}))
    with pytest.raises(BudgetError, match=r"smallest reachable share is 1\.0000"):
        generic().choose(Limits(keep_macs=0.99, protect=["*"]))
    with pytest.raises(UsageError, match="FLOP budget only"):
        generic().choose(Limits(keep_parameters=0.5), algorithm="optin")


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
    source = Source(name="scores", sha256="d" * 64)
    mask = make_mask(Scores(header, instance.importance), source, Limits(keep_macs=0.6, round_to=8))
    kept = {name: group.kept for name, group in mask.groups.items()}
    assert kept == instance.choose(Limits(keep_macs=0.6, round_to=8))
    assert mask.budget.asked == {"macs": 0.6}
    assert mask.budget.reached == instance.reached(kept)
    assert mask.importance_lost == instance.lost(kept)
    assert mask.inputs == origin | {"scores": source}


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


def test_what_a_solver_prints_is_not_data(capfd):
    libc = ctypes.CDLL(None)
    print("before")
    with knapsack.quiet_stdout():
        libc.puts(b"noise")
    print("after")
    libc.fflush(None)
    assert capfd.readouterr().out == "before\nafter\n"
