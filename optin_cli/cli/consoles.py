"""Consoles that tables and lines for people go through: stdout for data, stderr for talk."""

import sys
from typing import Any

import typer
from rich.console import Console
from rich.text import Text

from optin_cli.cli import launched
from optin_cli.cli.escapes import escaped

PIPE_WIDTH = 160


class EscapingConsole(Console):
    """A console on which no text from files steers the terminal: every string that is printed comes through here."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Escape and render a string."""
        return super().render_str(escaped(text), **options)


def console(*, error: bool = False) -> Console:
    """Console for data, or for talk on stderr: it prints names as they are, and cuts none short in files and pipes."""
    stream = sys.stderr if error else sys.stdout
    return EscapingConsole(stderr=error, highlight=False, markup=False, width=None if stream.isatty() else PIPE_WIDTH)


def say(message: str) -> None:
    """One line of talk on stderr, from the first of several processes alone."""
    if launched.leads():
        tell(message)


def tell(message: str) -> None:
    """One line of talk on stderr, from whichever process."""
    typer.echo(escaped(message), err=True)
