"""Rows of tables for models of many layers: equal layers as one row, and deep models by stretches of layers."""

from collections.abc import Hashable, Iterable, Mapping
from itertools import groupby
from typing import NamedTuple

DEEP = 24
"""Blocks from which a model is shown by stretches."""
STRETCHES = 12
"""Most stretches that a deep model is shown by."""


class Place(NamedTuple):
    """Where a group of units lies: its stack of blocks, the number of its block (None if it has none), and its kind."""

    stack: str
    number: int | None
    kind: str

    @classmethod
    def of(cls, name: str) -> "Place":
        """The place of a group called like encoder.3.head."""
        block, _, kind = name.rpartition(".")
        stack, _, number = block.rpartition(".")
        return cls(stack, int(number), kind) if number.isdigit() else cls(block, None, kind)


def alike(rows: Mapping[str, Hashable]) -> list[list[str]]:
    """Names of groups that one row shows: those of one stack and kind whose rows are equal, in the order of the first.

    rows: what is shown of each group.
    """
    found: dict[Hashable, list[str]] = {}
    for name, row in rows.items():
        place = Place.of(name)
        key: Hashable = name if place.number is None else (place.stack, place.kind, row)
        found.setdefault(key, []).append(name)
    return [*found.values()]


def stretches(names: Iterable[str]) -> list[list[str]]:
    """Names of groups that one row shows of a deep model: those of one kind in neighbouring blocks; else one each."""
    names = [*names]
    places = {name: Place.of(name) for name in names}
    blocks = sorted({(place.stack, place.number) for place in places.values() if place.number is not None})
    if len(blocks) < DEEP:
        return [[name] for name in names]
    each = -(-len(blocks) // STRETCHES)
    found: dict[Hashable, list[str]] = {}
    for name, place in places.items():
        key: Hashable = name if place.number is None else (place.stack, place.number // each, place.kind)
        found.setdefault(key, []).append(name)
    return [*found.values()]


def span(names: Iterable[str]) -> str:
    """What a row of several groups of one stack and kind is called: encoder.0-5 head; a group alone keeps its name."""
    names = [*names]
    if len(names) == 1:
        return names[0]
    places = [Place.of(name) for name in names]
    numbers = sorted(place.number for place in places if place.number is not None)
    runs = [[number for _, number in run] for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    shown = ",".join(f"{run[0]}" if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)
    lead = f"{places[0].stack}." if places[0].stack else ""
    return f"{lead}{shown} {places[0].kind}"
