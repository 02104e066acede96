"""The console that tables and lines for people go through."""

from typing import Any

from rich.console import Console
from rich.text import Text

from optin_cli.cli.escapes import escaped


class EscapingConsole(Console):
    """A console on which no text from files steers the terminal: every string that is printed comes through here."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Escape and render a string."""
        return super().render_str(escaped(text), **options)
