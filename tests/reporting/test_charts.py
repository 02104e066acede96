"""Axis ticks are round and enclose the data."""

from hypothesis import given
from hypothesis import strategies as st

from optin_cli.reporting.charts import ticks


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_round_and_enclose(low, spread):
    found = ticks(low, low + spread)
    step = found[1] - found[0]
    assert found[0] <= low + 1e-6 * step and found[-1] >= low + spread - 1e-6 * step
    assert 2 <= len(found) <= 9
    assert found == sorted(set(found))
