"""Counts of units that a library's own config can state.

Its own class can build a uniform mask, one with the same count in every block of a stack, if keys of its config state
that count.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from optin_cli.architectures.schema import ConfigRule
from optin_cli.artifacts.costs import ConfigCounts
from optin_cli.model.lookup import number_at

Settings = dict[str, int | float]
"""Values by key of the library's config."""


@dataclass(frozen=True)
class ConfigKey:
    """A key of the config and its value for a number of units in every block (`schema.ConfigKeyRule`)."""

    key: str
    per_unit: float | None
    over: int | None
    fixed: int | None
    divides: int | None

    def value(self, units: int) -> int | float:
        """The key's value for `units` units; a ratio is whole, or gives the number back when rounded down."""
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
class ConfigCount:
    """How the config states a group's number of units, which is a multiple of `step`."""

    keys: tuple[ConfigKey, ...]
    step: int

    def counts(self) -> ConfigCounts:
        """Which numbers it can state."""
        least = {key.divides // round(key.per_unit) for key in self.keys if key.divides and key.per_unit}
        return ConfigCounts(step=self.step, divisor_of=min(least, default=None))

    def settings(self, units: int) -> Settings:
        """The keys that state a number."""
        return {key.key: key.value(units) for key in self.keys}


def resolve_config(
    model: nn.Module, rule: ConfigRule | None, place: Callable[[str], str], owner: str, problems: list[str]
) -> ConfigCount | None:
    """Look up the attributes that a rule names by paths that `place` completes. owner: group that `problems` name."""
    if rule is None:
        return None

    def number(value: str | None) -> int | None:
        return None if value is None else number_at(model, place(value), owner, problems)

    keys = []
    for key, said in rule.keys.items():
        per_unit = number(said.per_unit) if isinstance(said.per_unit, str) else said.per_unit
        keys.append(ConfigKey(key, per_unit, number(said.over), number(said.fixed), number(said.divides)))
    step = place(rule.step) if isinstance(rule.step, str) else rule.step
    return ConfigCount(tuple(keys), number_at(model, step, owner, problems))
