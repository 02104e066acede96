"""Numbers as the command line takes them: digits of ASCII, without the underscores that Python allows."""

import re
from typing import Any

import typer

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|nan|[+-]?inf", re.ASCII | re.IGNORECASE)
WHOLE_NUMBER = re.compile(r"[+-]?\d{1,99}", re.ASCII)


def whole_number(given: str | int) -> int:
    """Parse an option's value, or return its default (typer.BadParameter if it is no whole number)."""
    if isinstance(given, str) and not WHOLE_NUMBER.fullmatch(given.strip()):
        raise typer.BadParameter(f"{given!r} is not a whole number.")
    return int(given)


def number(given: str | float) -> float:
    """Parse an option's value, or return its default (typer.BadParameter if it is no number)."""
    if isinstance(given, str) and not NUMBER.fullmatch(given.strip()):
        raise typer.BadParameter(f"{given!r} is not a number.")
    return float(given)


PARSERS: dict[Any, Any] = {int: whole_number, float: number}
"""What parses the values of options, by their type."""
