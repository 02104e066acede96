"""Refit options out of range are refused."""

import pytest

from optin_cli.errors import UsageError
from optin_cli.options.refit import RefitOptions


@pytest.mark.parametrize(("values", "words"), [({"ridge": 0.0}, "ridge"), ({"samples": 2}, "too few")])
def test_options_out_of_range_are_refused(values, words):
    with pytest.raises(UsageError, match=words):
        RefitOptions(**values)
