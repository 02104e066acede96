"""Shards: written as I/N, and dividing everything once."""

import pytest

from optin_cli.errors import UsageError
from optin_cli.options.shard import Shard


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/0", "a/b", "-1/2", "1/2/3", "\uff11/\uff12"])
def test_shards_are_written_as_number_of_count(text):
    with pytest.raises(UsageError, match="expected I/N"):
        Shard.parse(text)


def test_shards_divide_everything_once():
    for count in range(1, 12):
        taken = [each for number in range(1, count + 1) for each in Shard(number, count).of(8)]
        assert taken == [*range(8)]
