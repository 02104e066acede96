"""Image options: sizes, and values out of range."""

import pytest

from optin_cli.errors import UsageError
from optin_cli.options.images import ImageOptions, size_of


@pytest.mark.parametrize("wrong", [{"max_unreadable": 1.0}, {"max_unreadable": -0.1}, {"workers": 0}, {"prefetch": 0}])
def test_options_out_of_range_are_refused(wrong):
    with pytest.raises(UsageError, match=str(next(iter(wrong)))):
        ImageOptions(**wrong)


@pytest.mark.parametrize("text", ["192x256", " 192 x 256 "])
def test_a_size_is_height_and_width(text):
    assert size_of(text) == (192, 256)


@pytest.mark.parametrize("text", ["", "192", "0x5", "-1x5", "192x", "a x b", "1x2x3", "1.5x2"])
def test_other_texts_are_no_size(text):
    with pytest.raises(UsageError, match="is no height and width") as caught:
        size_of(text)
    assert "192x256" in caught.value.hint
