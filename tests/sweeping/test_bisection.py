"""Bisection for the smallest share, on any answers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optin_cli.sweeping.bisection import PLACES, RESOLUTION, find_smallest


@pytest.mark.parametrize(
    ("smallest", "least", "evaluations", "asked", "found"),
    [
        (0.1, 0.0, 3, [0.5, 0.3, 0.2], 0.2),
        (0.1, 0.4, 3, [0.5, 0.3, 0.4], 0.4),
        (0.1, 0.9, 3, [0.5, 0.75, 0.875], None),
        (0.1, 2.0, 2, [0.5, 0.75], None),
        (0.6, 0.7, 2, [0.8, 0.7], 0.7),
        (0.9999, 0.0, 6, [1.0], 1.0),
        (1.0, 0.0, 6, [1.0], 1.0),
        (0.1, 0.5, 1, [0.5], 0.5),
    ],
)
def test_bisection_asks_the_shares_worked_by_hand(smallest, least, evaluations, asked, found):
    seen = []
    assert find_smallest(lambda s: seen.append(s) or s >= least, smallest, evaluations=evaluations) == found
    assert seen == pytest.approx(asked, abs=1e-4)


@given(
    smallest=st.floats(0.0, 1.0).map(lambda s: round(s, PLACES)),
    answers=st.lists(st.booleans(), min_size=12, max_size=12),
    evaluations=st.integers(1, 12),
)
def test_any_answers_give_the_smallest_share_that_was_within(smallest, answers, evaluations):
    seen = {}

    def within(share):
        assert smallest <= share <= 1
        assert share not in seen
        seen[share] = answers[len(seen)]
        return seen[share]

    found = find_smallest(within, smallest, evaluations=evaluations)
    assert 1 <= len(seen) <= evaluations
    assert found == min((share for share, good in seen.items() if good), default=None)


@given(smallest=st.floats(0.0, 0.9).map(lambda s: round(s, PLACES)), least=st.floats(0.0, 1.0))
def test_bisection_closes_in_on_a_threshold(smallest, least):
    found = find_smallest(lambda s: s >= least, smallest, evaluations=20)
    if found is None:
        assert least > 1 - RESOLUTION - 1e-4
    else:
        assert found >= least
        assert found - max(least, smallest) <= RESOLUTION + 1e-4
