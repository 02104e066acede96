"""Every numeric option of every command takes digits alone."""

import pytest
import typer
from helpers.running import call

from optin_cli.cli.main import app

COMMANDS = typer.main.get_command(app).commands
NUMERIC = [
    (name, option.opts[-1])
    for name, command in COMMANDS.items()
    for option in command.params
    if option.metavar in ("N", "NUMBER") and option.opts[0].startswith("--")
]


@pytest.mark.parametrize("value", ["1_0", "\u0663", " ", "0x10", "1 2"])
@pytest.mark.parametrize(("command", "flag"), NUMERIC)
def test_other_ways_to_write_numbers_are_refused(here, command, flag, value):
    result = call(command, "nothing", flag, value)
    assert result.code == 2 and repr(value) in result.err, result.err
