"""Options that are declared in dataclass fields: their checks, what is recorded, and how they are listed and built."""

import math
from dataclasses import dataclass

import pytest

from optin_cli.errors import UsageError
from optin_cli.options.declare import Checked, Option, build, declared, nested, offer, option, shared
from optin_cli.options.evaluation import AnswerOptions, EvalOptions
from optin_cli.options.export import ExportOptions
from optin_cli.options.images import ImageOptions
from optin_cli.options.latency import LatencyOptions
from optin_cli.options.refit import RefitOptions
from optin_cli.options.scoring import CRITERIA, ScoreOptions
from optin_cli.options.search import BudgetOptions, SearchOptions
from optin_cli.options.sweep import SweepOptions

CLASSES = (
    AnswerOptions,
    BudgetOptions,
    EvalOptions,
    ExportOptions,
    ImageOptions,
    LatencyOptions,
    RefitOptions,
    ScoreOptions,
    SearchOptions,
    SweepOptions,
)
SEED = Option("--seed", "Seed.")


@dataclass(frozen=True)
class Inner(Checked):
    share: float = option(0.5, "--share", "Share.", above=0, below=1)
    names: tuple[str, ...] = option(("a",), "--names", "Names.", choices=("a", "b"), noun="name")
    seed: int = shared(0, SEED)
    hidden: int = option(3, low=1)


@dataclass(frozen=True)
class Outer(Checked):
    inner: Inner = nested(Inner(), offer("seed", share=Option("--part", "Part."), prefix="inner_"))
    most: float | None = option(None, "--most", "Most.", above=0, high=1, recorded="largest")
    note: str = option("", "--note", "Note.", recorded="")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"share": 1.0}, "share is 1.0; expected a number between 0 and 1."),
        ({"share": math.nan}, "share is nan; expected a number between 0 and 1."),
        ({"names": ("a", "c")}, "Unknown name 'c'."),
        ({"hidden": 0}, "hidden is 0; expected at least 1."),
    ],
)
def test_values_out_of_range_are_refused(values, message):
    with pytest.raises(UsageError) as caught:
        Inner(**values)
    assert caught.value.message == message


@pytest.mark.parametrize(
    ("bounds", "bad", "words"),
    [
        ({"above": 0}, 0, "a positive number"),
        ({"low": 0}, -1, "at least 0"),
        ({"above": 0, "high": 1}, 1.5, "a number above 0, at most 1"),
        ({"low": 0, "below": 1}, 1, "a number of at least 0, below 1"),
        ({"low": 0}, math.inf, "at least 0"),
        ({"above": 0, "below": 1, "none": True}, 2, "a number between 0 and 1, or none"),
    ],
)
def test_ranges_are_said_in_words(bounds, bad, words):
    with pytest.raises(UsageError, match=f"x is {bad}; expected {words}\\.$"):
        Option("--x", **bounds).check(bad, "x")


@pytest.mark.parametrize(
    ("value", "words"), [(1001, "at most 1,000"), (math.nan, "a finite number"), (-math.inf, "a finite number")]
)
def test_slips_and_what_is_not_finite_are_refused(value, words):
    with pytest.raises(UsageError, match=f"x is {value}; expected {words}"):
        Option("--x", most=1000).check(value, "x")


def test_hints_name_the_flag():
    with pytest.raises(UsageError) as caught:
        ScoreOptions(temperature=0.0)
    assert caught.value.hint == "Pass another --tau."
    with pytest.raises(UsageError) as caught:
        ScoreOptions(criterion="trajectry")
    assert "Did you mean trajectory" in caught.value.hint


def test_records_hold_nested_options_under_their_keys():
    assert Outer().recorded() == {
        "inner": {"share": 0.5, "names": ["a"], "seed": 0, "hidden": 3},
        "largest": None,
    }
    assert [*ScoreOptions().recorded()][:3] == ["criterion", "units", "estimator"]
    assert not {"samples", "seed"} & EvalOptions(samples=3).recorded().keys()


def test_nested_classes_list_the_options_that_they_share():
    found = {(one.flag, one.key, one.path) for one in declared(Outer)}
    assert found == {
        ("--part", "inner_share", ("inner", "share")),
        ("--seed", "inner_seed", ("inner", "seed")),
        ("--most", "largest", ("most",)),
        ("--note", "note", ("note",)),
    }
    assert [one.flag for one in declared(Inner, offer("seed"))] == ["--seed"]
    assert [one.flag for one in declared(Outer, offer("note"))] == ["--note"]


def test_values_by_path_build_nested_options():
    assert build(Outer, {("inner", "share"): 0.25, ("most",): 1.0}) == Outer(Inner(share=0.25), 1.0)


@pytest.mark.parametrize("kind", CLASSES)
def test_every_option_says_what_it_is_for_and_has_a_flag_of_its_own(kind):
    found = list(declared(kind))
    assert all(one.flag.startswith("--") and one.option.help.endswith((".", ")", "…")) for one in found)
    by_flag = {one.flag: one for one in found}
    for one in found:
        assert by_flag[one.flag].default == one.default, "options that share a flag share a default"
        assert by_flag[one.flag].type == one.type


@pytest.mark.parametrize("kind", [kind for kind in CLASSES if kind is not SweepOptions])
def test_defaults_are_in_range(kind):
    assert kind() == kind()


def test_several_budgets_give_limits_for_each_mask():
    budgets = BudgetOptions(macs=(0.6, 0.5), latency=(0.7,)).each()
    assert budgets == [{"macs": 0.6, "latency": 0.7}, {"macs": 0.5, "latency": 0.7}]
    with pytest.raises(UsageError, match="--keep-params lists 3 budgets and --keep-flops 2"):
        BudgetOptions(macs=(0.6, 0.5), parameters=(0.1, 0.2, 0.3)).each()
    with pytest.raises(UsageError, match="No budget"):
        BudgetOptions().each()


def test_criteria_are_listed_in_the_help():
    criterion = next(one for one in declared(ScoreOptions) if one.flag == "--criterion")
    assert all(name in criterion.option.help for name in CRITERIA)
