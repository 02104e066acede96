"""Scoring options out of range are refused."""

import pytest

from optin_cli.errors import UsageError
from optin_cli.options.scoring import ScoreOptions


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"criterion": "trajectroy"}, "Unknown criterion"),
        ({"probes": 0}, "probes is 0"),
        ({"temperature": -1.0}, "temperature is -1"),
        ({"output_weight": -0.5}, "output_weight is -0.5"),
        ({"samples": 0}, "samples is 0"),
        ({"exact_kinds": ("hed",)}, "Unknown exact kind 'hed'"),
        ({"exact_kinds": ("heads", "tokens")}, "Unknown exact kind 'tokens'"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        ScoreOptions(**options)
