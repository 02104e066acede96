"""What a description says of the stock config in; which counts of units that config can state, and how, out.

A uniform mask is one that the library's own class can build: the same count in every block of a stack, stated by
keys of its config.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from optin_cli.architectures.schema import StockRule
from optin_cli.artifacts.costs import StockCounts
from optin_cli.model.lookup import number_at

Settings = dict[str, int | float]
"""Values by key of the stock config."""


@dataclass(frozen=True)
class StockKey:
    """A key of the stock config and its value for so many units in every block: see the rule of that name."""

    key: str
    per_unit: float | None
    over: int | None
    fixed: int | None
    divides: int | None

    def value(self, units: int) -> int | float:
        """What the config says of `units` units.

        A ratio is whole where it can be, else one that gives the number back when multiplied and rounded down.
        """
        if self.per_unit is None:
            return self.fixed or 0
        number = round(self.per_unit * units)
        if self.over is None:
            return number
        if number % self.over == 0:
            return number // self.over
        ratio = number / self.over
        return ratio if int(self.over * ratio) == number else (number + 0.5) / self.over


@dataclass(frozen=True)
class Stock:
    """How the stock config states a group's count of units, which comes in multiples of `step`."""

    keys: tuple[StockKey, ...]
    step: int

    def counts(self) -> StockCounts:
        """Which counts it can state."""
        least = {key.divides // round(key.per_unit) for key in self.keys if key.divides and key.per_unit}
        return StockCounts(step=self.step, divisor_of=min(least, default=None))

    def settings(self, units: int) -> Settings:
        """The keys that state a count."""
        return {key.key: key.value(units) for key in self.keys}


def resolve_stock(
    model: nn.Module, rule: StockRule | None, place: Callable[[str], str], owner: str, problems: list[str]
) -> Stock | None:
    """Look up the attributes that a rule names.

    Args:
        place: full path of one that the rule gives. owner: group that `problems` are told of.
    """
    if rule is None:
        return None

    def number(value: str | None) -> int | None:
        return None if value is None else number_at(model, place(value), owner, problems)

    keys = (
        StockKey(
            key,
            number(said.per_unit) if isinstance(said.per_unit, str) else said.per_unit,
            *map(number, (said.over, said.fixed, said.divides)),
        )
        for key, said in rule.keys.items()
    )
    step = place(rule.step) if isinstance(rule.step, str) else rule.step
    return Stock(tuple(keys), number_at(model, step, owner, problems))
