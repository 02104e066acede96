"""Latency tables: isotonic ladders, coarser levels of large groups, invalid ladders."""

import numpy as np
import pytest
from helpers.latency import make_table
from hypothesis import given
from hypothesis import strategies as st

from optin_cli.artifacts.base import timed_on
from optin_cli.artifacts.latency import MOST_LEVELS, Ladder, coarser, isotonic


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=8))
def test_isotonic_never_falls_and_keeps_the_mean(values):
    found = isotonic(np.array(values))
    assert (np.diff(found) >= -1e-12).all() and found.mean() == pytest.approx(np.mean(values), abs=1e-9)
    rising = np.sort(values)
    assert np.allclose(isotonic(rising), rising)


@pytest.mark.parametrize("units", [12, 128, 1536, 3072, 4100])
def test_large_groups_go_in_steps(units):
    levels = coarser(list(range(units + 1)))
    assert len(levels) <= MOST_LEVELS + 2 and levels[0] == 0 and levels[-1] == units
    step = levels[1]
    assert step & (step - 1) == 0 and (step == 1) == (units < MOST_LEVELS)
    assert all(level % step == 0 for level in levels[:-1])


@pytest.mark.parametrize(
    ("device", "threads", "words"),
    [
        ("cpu", 1, "cpu, 1 thread"),
        ("cpu", 2, "cpu, 2 threads"),
        ("cpu (AMD EPYC 7763 64-Core Processor)", 2, "cpu (AMD EPYC 7763 64-Core Processor), 2 threads"),
        ("cuda (NVIDIA H100)", 2, "cuda (NVIDIA H100)"),
        ("mps", 2, "mps"),
    ],
)
def test_threads_are_told_of_cpus_alone(device, threads, words):
    assert timed_on(device, threads) == words
    assert make_table({"a": Ladder(units=[0, 1], ms=[0, 1])}, device=device, threads=threads).timed_on == words


@pytest.mark.parametrize(
    ("ladder", "words"),
    [
        ({"units": [0, 2], "ms": [0.0]}, "2 counts of units have 1 times"),
        ({"units": [2, 0], "ms": [0.0, 1.0]}, "must be ascending"),
        ({"units": [0, 2], "ms": [0.0, float("nan")]}, "finite"),
    ],
)
def test_invalid_ladders_are_refused(ladder, words):
    with pytest.raises(ValueError, match=words):
        Ladder(**ladder)
