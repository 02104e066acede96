"""The search of the paper is within budget and never better than the exact one."""

from helpers.instances import INSTANCES, SHARES, SLACK
from hypothesis import given, settings
from hypothesis import strategies as st

from optin_cli.errors import BudgetError
from optin_cli.searching.limits import Limits


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
