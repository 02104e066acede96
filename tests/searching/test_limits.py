"""Limits that are wrong, or that no mask meets."""

import pytest
from helpers.instances import generic

from optin_cli.errors import BudgetError, UsageError
from optin_cli.searching.limits import Limits


@pytest.mark.parametrize(
    ("limits", "message", "hint"),
    [
        (Limits(), "No budget was given", "--keep-flops"),
        (Limits(keep_macs=0.5, round_to=0), "expected 1 or more", None),
        (Limits(keep_macs=0.5, protect=["encoder.9.head"]), "no group 'encoder.9.head'", "Did you mean encoder."),
    ],
)
def test_wrong_limits_are_usage_errors(limits, message, hint):
    with pytest.raises(UsageError) as caught:
        generic().choose(limits)
    assert message in caught.value.message
    assert hint is None or hint in caught.value.hint


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(keep_macs=0.0), "expected a number above 0"),
        (Limits(keep_macs=1.5), "expected a number above 0, at most 1"),
        (Limits(keep_parameters=float("nan")), "share of parameters to keep is nan"),
    ],
)
def test_shares_of_other_than_a_part_are_refused(limits, message):
    with pytest.raises(UsageError, match=message):
        limits.require_shares()


def test_limits_that_no_mask_meets():
    with pytest.raises(BudgetError, match="has 4 units, fewer than the asked minimum of 5"):
        generic().choose(Limits(keep_macs=0.5, minima={"head": 5}))
    with pytest.raises(BudgetError, match=r"smallest reachable share is 1\.0000"):
        generic().choose(Limits(keep_macs=0.99, protect=["*"]))
    with pytest.raises(UsageError, match="FLOP budget only"):
        generic().choose(Limits(keep_parameters=0.5), algorithm="optin")
