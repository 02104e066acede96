"""Tables that fit the terminal: numbers stay whole, and columns that are needed least go first."""

import copy
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

HEADING = 10
"""Letters of a heading that stay on one line where the columns do not fit."""
_ANY = 10_000
"""A width that limits nothing."""


class FittingTable(Table):
    """A table that leaves out columns where the console is too narrow for all."""

    def __init__(self, title: str | None = None, caption: str | None = None, **options: Any) -> None:
        super().__init__(title=title, caption=caption, **options)
        self.spare: dict[str, int] = {}

    def add_names(self, heading: str = "", *, whole: bool = False) -> None:
        """A column of words. whole: whether they stay on one line."""
        self.add_column(heading, no_wrap=whole, overflow="fold")

    def add_figures(self, *headings: str, spare: int = 0) -> None:
        """Columns of numbers, which never break. spare: how soon they go where all do not fit, 0 for never."""
        for heading in headings:
            if spare:
                self.spare[heading] = spare
            self.add_column(Text(heading, no_wrap=False, overflow="fold"), justify="right", no_wrap=True)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from Table.__rich_console__(self.fitted(console, options), console, options)

    def fitted(self, console: Console, options: ConsoleOptions) -> Table:
        """The table without the columns that do not fit."""
        table = copy.copy(self)
        table.columns = [copy.copy(column) for column in self.columns]
        unlimited = options.update(width=_ANY)
        if Measurement.get(console, unlimited, table).maximum <= options.max_width:
            return table
        for column in table.columns:
            widest = max((cell_len(str(cell)) for cell in column.cells), default=1)
            if column.justify == "right":  # headings give way, numbers do not
                column.min_width = column.max_width = max(widest, min(cell_len(str(column.header)), HEADING))
            elif column.no_wrap:
                column.min_width = widest
        for heading in sorted(self.spare, key=lambda heading: -self.spare[heading]):
            if Measurement.get(console, unlimited, table).minimum <= options.max_width:
                break
            table.columns = [column for column in table.columns if str(column.header) != heading]
        return table
