"""Portions of a run's jobs: of about equal weight, the same whoever shares the run."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optin_cli.errors import UsageError
from optin_cli.processes.portions import PORTIONS, cut_portions


@pytest.mark.parametrize(
    ("weights", "lengths"),
    [
        ([], []),
        ([3], [1]),
        ([1] * 3, [1, 1, 1]),
        ([1] * 8, [1] * 8),
        ([32] * 15 + [20], [2] * 8),
        ([1] * 80, [10] * 8),
        ([100, 1, 1, 1], [1, 3]),
        ([0, 0], [2]),
    ],
)
def test_portions_have_consecutive_jobs_of_about_equal_weight(weights, lengths):
    assert [len(portion) for portion in cut_portions(weights)] == lengths


@given(st.lists(st.floats(0, 1e6), max_size=60), st.integers(1, PORTIONS))
def test_every_job_is_in_one_portion_whoever_shares_them(weights, sharing):
    portions = cut_portions(weights, sharing)
    assert portions == cut_portions(weights)
    assert [number for portion in portions for number in portion] == [*range(len(weights))]
    assert len(portions) <= PORTIONS and all(portions)


def test_more_than_there_are_portions_cannot_share_a_run():
    with pytest.raises(UsageError, match="shared by 9, but it is divided into 8 portions"):
        cut_portions([1] * 100, PORTIONS + 1)
