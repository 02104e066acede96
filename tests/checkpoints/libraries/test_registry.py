"""Model arguments given on the command line."""

import pytest

from optin_cli.checkpoints.libraries.registry import parse_arguments
from optin_cli.errors import UsageError


def test_arguments_are_read():
    assert parse_arguments("a=1,b=x,c=true,d=0.5") == {"a": 1, "b": "x", "c": True, "d": 0.5}
    assert parse_arguments(None) == {}
    for text in ("a", "a=1,=2", "1=2"):
        with pytest.raises(UsageError, match="not KEY=VALUE"):
            parse_arguments(text)
