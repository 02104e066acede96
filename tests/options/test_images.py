"""Image options out of range are refused."""

import pytest

from optin_cli.errors import UsageError
from optin_cli.options.images import ImageOptions


@pytest.mark.parametrize("wrong", [{"max_unreadable": 1.0}, {"max_unreadable": -0.1}, {"workers": 0}, {"prefetch": 0}])
def test_options_out_of_range_are_refused(wrong):
    with pytest.raises(UsageError, match=str(next(iter(wrong)))):
        ImageOptions(**wrong)
