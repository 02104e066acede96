"""The knapsack against all subsets."""

import ctypes
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optin_cli.searching import knapsack
from optin_cli.searching.knapsack import solve_knapsack


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


def test_what_a_solver_prints_is_not_data(capfd):
    libc = ctypes.CDLL(None)
    print("before")
    with knapsack.quiet_stdout():
        libc.puts(b"noise")
    print("after")
    libc.fflush(None)
    assert capfd.readouterr().out == "before\nafter\n"
