"""Whatever a library raises over a file is one error that names the file."""

import os

import pytest

from optin_cli.checkpoints.foreign import explaining, unheard
from optin_cli.errors import CheckpointError, DataError


@pytest.mark.parametrize(
    "error", [Exception("bad"), KeyError("bad"), IndexError("bad"), AssertionError("bad"), OSError("bad")]
)
def test_any_error_becomes_one_of_ours(error):
    with pytest.raises(CheckpointError, match=r"x is unsound: .*bad") as caught, explaining("x is unsound", "Mend it."):
        raise error
    assert caught.value.hint == "Mend it." and caught.value.__cause__ is error


@pytest.mark.parametrize("error", [DataError("ours"), MemoryError(), KeyboardInterrupt()])
def test_ours_and_the_systems_pass(error):
    with pytest.raises(type(error)), explaining("x is unsound"):
        raise error


def test_what_libraries_print_is_not_data(capfd):
    print("before")
    with unheard():
        os.write(1, b"Ignored unknown kwarg option \x1b[2J\n")
    print("after")
    assert capfd.readouterr().out == "before\nafter\n"
    with pytest.raises(DataError), unheard():
        raise DataError("ours")
    print("still")
    assert capfd.readouterr().out == "still\n"
