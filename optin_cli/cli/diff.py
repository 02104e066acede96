"""`optin diff`: compare two artifacts of one kind, or two checkpoints."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from optin_cli.cli import common

if TYPE_CHECKING:
    from rich.table import Table

    from optin_cli.diffing.tables import Difference, Row, Section


MOST_ROWS = 40
MOST_UNITS = 8
MOST_LETTERS = 60


def diff(
    a: Annotated[
        str,
        typer.Argument(
            metavar="A",
            help="Mask, scores, eval, sweep, profile or latency file, an export's record, or a sweep or checkpoint "
            "folder.",
            show_default=False,
        ),
    ],
    b: Annotated[str, typer.Argument(metavar="B", help="Another of the same kind.", show_default=False)],
    exit_code: Annotated[
        bool,
        common.flag("--exit-code", "Exit with status 3 if they differ in more than timings."),
    ] = False,
    as_json: common.Json = False,
) -> int:
    """Compare two masks, score files, models or results."""
    from optin_cli.artifacts.base import to_json
    from optin_cli.diffing.diff import diff as compare
    from optin_cli.errors import Exit

    found = compare(a, b)
    if as_json:
        common.show(to_json(found.as_json()))
    else:
        _print(found)
    return Exit.GATE if exit_code and not found.same else Exit.DONE


def _print(found: Difference) -> None:
    console = common.console()
    console.print(f"a: {found.a.name} ({found.kind}, sha256 {found.a.sha256[:12]})")
    console.print(f"b: {found.b.name} ({found.kind}, sha256 {found.b.sha256[:12]})")
    for key, value in found.summary.items():
        console.print(f"  {key}: {_text(value)}")
    if found.same:
        console.print("They differ in nothing." if not found.timings else "They differ in nothing but timings.")
    for title, section in found.sections.items():
        console.print(_table(title, section))
    if found.timings:
        console.print(_table("timings, which differ between any two runs", found.timings))


def _table(title: str, section: Section) -> Table:
    from rich.table import Table

    left = len(section) - MOST_ROWS
    table = Table(title=title, title_justify="left", caption=f"and {left} more: --json has all" if left > 0 else None)
    table.add_column("", overflow="fold")
    columns = dict.fromkeys(column for row in section.values() for column in row)
    for column in columns:
        table.add_column(column, justify="right" if _is_figures(section, column) else "left", overflow="fold")
    for name in [*section][:MOST_ROWS]:
        row: Row = section[name]
        table.add_row(name, *(_text(row[column]) if column in row else "" for column in columns))
    return table


def _is_figures(section: Section, column: str) -> bool:
    return all(isinstance(row.get(column), (int, float, type(None))) for row in section.values())


def _text(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, list) and all(isinstance(item, int) for item in value):
        shown = ", ".join(map(str, value[:MOST_UNITS]))
        return f"{len(value)}: {shown}, …" if len(value) > MOST_UNITS else shown or "-"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MOST_LETTERS else f"{text[:MOST_LETTERS]}…"
