"""Options are declared once: a dataclass field holds its default, type, flag, help text and range.

From these fields come the checks of an options class, the constants that artifacts record, the parameters of the
commands (`cli/parameters.py`) and the command lines of reports (`reporting/commands.py`).
"""

import dataclasses
import math
import operator
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar, get_type_hints

from optin_cli.errors import UsageError, did_you_mean

T = TypeVar("T")
DATA, BUDGET, METHOD, TIMING = "Data", "Budget", "Method", "Timing and costs"
MODEL, OUTPUT, RESEARCH = "Model and device", "Output", "Research"
PANELS = (DATA, BUDGET, METHOD, TIMING, MODEL, OUTPUT, RESEARCH)
"""Parts of a help page, in their order."""
OPTION, OFFER = "option", "offer"
"""Keys of a field's metadata: how it is given, and which fields of a nested options class are."""


@dataclass(frozen=True)
class Option:
    """How a field is given on the command line, checked and recorded.

    flag: None keeps the field off the command line. low, high: inclusive bounds, of each item of a tuple; above,
    below: exclusive ones. most: a value above it is a slip, however much memory and time there is. choices: every
    allowed value. none: the command line takes "none", for None or an empty tuple. repeated: a tuple is given by
    repeating the flag, otherwise by commas. required: the command line has no default. noun: what messages call the
    value, the field's name if empty. recorded: its key in artifacts, the field's name if None, not recorded if empty.
    panel: the part of the help page, that of the options class if empty. unset: what holds where the default is None.
    earlier: flags of earlier versions, which are still taken. spoken: what the command line calls some of the choices;
    it takes both names.
    """

    flag: str | None = None
    help: str = ""
    metavar: str | None = None
    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    most: float | None = None
    choices: Collection[str] | None = None
    none: bool = False
    repeated: bool = False
    required: bool = False
    noun: str = ""
    recorded: str | None = None
    panel: str = ""
    unset: str = ""
    earlier: tuple[str, ...] = ()
    spoken: Mapping[str, str] = field(default_factory=dict)

    @property
    def shown_choices(self) -> tuple[str, ...]:
        """The choices as the command line calls them."""
        return tuple(map(self.said, self.choices or ()))

    def said(self, choice: str) -> str:
        """What the command line calls a choice."""
        return next((name for name, value in self.spoken.items() if value == choice), choice)

    def meant(self, name: str) -> str:
        """The choice of that name on the command line."""
        return self.spoken.get(name, name)

    def check(self, value: Any, name: str) -> None:
        """Refuse a value, or an item of a tuple, that is not one of the choices or out of range (UsageError)."""
        for item in value if isinstance(value, tuple) else (value,):
            if item is not None:
                self._check(item, name)

    def _check(self, value: Any, name: str) -> None:
        noun = self.noun or name
        if self.choices is not None and value not in self.choices:
            raise UsageError(f"Unknown {noun} {value!r}.", hint=did_you_mean(value, self.shown_choices))
        bounds = self._bounds()
        if bounds and not (math.isfinite(value) and all(holds(value, limit) for holds, _, limit in bounds)):
            hint = None if self.flag is None else f"Pass another {self.flag}."
            if self.is_share and math.isfinite(value) and 1 < value <= 100:
                hint = f"For {value:g} %, pass {value / 100:g}."
            raise UsageError(f"{noun} is {value}; expected {self._range()}{', or none' * self.none}.", hint=hint)
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"{noun} is {value}; expected a finite number.")
        if self.most is not None and value > self.most:
            raise UsageError(f"{noun} is {value}; expected at most {self.most:,.0f}.")

    @property
    def is_share(self) -> bool:
        """Whether values are from 0 to 1."""
        return 1 in (self.high, self.below)

    def _bounds(self) -> list[tuple[Callable[[float, float], bool], str, float]]:
        return [
            (holds, words, limit)
            for holds, words, limit in (
                (operator.gt, "above", self.above),
                (operator.ge, "of at least", self.low),
                (operator.le, "at most", self.high),
                (operator.lt, "below", self.below),
            )
            if limit is not None
        ]

    def _range(self) -> str:
        if self.above is not None and self.below is not None:
            return f"a number between {self.above:g} and {self.below:g}"
        words = [f"{words} {limit:g}" for _, words, limit in self._bounds()]
        if words == ["above 0"]:
            return "a positive number"
        return f"a number {', '.join(words)}" if len(words) > 1 else words[0].removeprefix("of ")


@dataclass(frozen=True)
class Offer:
    """Which fields of an options class a command offers: all if none is named, with other flags for some.

    prefix: begins the keys under which artifacts record them.
    """

    names: tuple[str, ...]
    others: Mapping[str, Option]
    prefix: str = ""

    def option_of(self, field: dataclasses.Field[Any]) -> Option | None:
        """How a field is given, None if it is not."""
        if field.name in self.others:
            return self.others[field.name]
        own: Option | None = field.metadata.get(OPTION)
        return own if own is not None and own.flag is not None and self.takes(field.name) else None

    def takes(self, name: str) -> bool:
        """Whether a field is offered."""
        return not (self.names or self.others) or name in self.names


def offer(*names: str, prefix: str = "", **others: Option) -> Offer:
    """The named fields with their own flags, and `others` with the given ones; all fields if there are neither."""
    return Offer(names, others, prefix)


def option(default: T, flag: str | None = None, help: str = "", **details: Any) -> T:
    """A dataclass field with a default, its flag, its help text and the other attributes of `Option`."""
    return shared(default, Option(flag, help, **details))


def shared(default: T, option: Option) -> T:
    """A dataclass field with an option that several classes have."""
    made: T = field(default=default, metadata={OPTION: option})
    return made


def nested(default: T, offered: Offer) -> T:
    """A dataclass field that holds another options class, of which the command line takes a part."""
    made: T = field(default=default, metadata={OFFER: offered})
    return made


class Checked:
    """Base of the options classes: checks values on construction and says what artifacts record.

    panel: the part of help pages that its options are in.
    """

    panel: ClassVar[str] = METHOD

    def __post_init__(self) -> None:
        for item in _fields(self):
            declared_as: Option | None = item.metadata.get(OPTION)
            if declared_as is not None:
                declared_as.check(getattr(self, item.name), item.name)

    def recorded(self) -> dict[str, Any]:
        """Every constant as artifacts record it."""
        found = {}
        for item in _fields(self):
            declared_as: Option | None = item.metadata.get(OPTION)
            key = None if declared_as is None else declared_as.recorded
            if key != "":
                found[key or item.name] = _plain(getattr(self, item.name))
        return found


def _fields(of: Any) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(of)


def _plain(value: Any) -> Any:
    if isinstance(value, Checked):
        return value.recorded()
    return [*value] if isinstance(value, tuple) else value


@dataclass(frozen=True)
class Declared:
    """One field that is an option.

    path: names of fields that lead to it. key: of it in artifacts. panel: the part of the help page.
    """

    path: tuple[str, ...]
    key: str
    type: Any
    default: Any
    option: Option
    panel: str = METHOD

    @property
    def flag(self) -> str:
        """Its flag on the command line."""
        return self.option.flag or ""


def declared(kind: type, taken: Offer | None = None) -> Iterator[Declared]:
    """The options of an options class and those nested in it, in the order of their fields."""
    taken = taken or offer()
    types = get_type_hints(kind)
    for item in _fields(kind):
        if OFFER in item.metadata and taken.takes(item.name):
            for inner in declared(types[item.name], item.metadata[OFFER]):
                path, key = (item.name, *inner.path), taken.prefix + inner.key
                yield dataclasses.replace(inner, path=path, key=key)
        elif (given := taken.option_of(item)) is not None:
            key = taken.prefix + (given.recorded or item.name)
            panel = given.panel or getattr(kind, "panel", METHOD)
            yield Declared((item.name,), key, types[item.name], item.default, given, panel)


def build(kind: type[T], values: Mapping[tuple[str, ...], Any]) -> T:
    """Make an options class, and those nested in it, from values by the paths of their fields."""
    types = get_type_hints(kind)
    by_field: dict[str, dict[tuple[str, ...], Any]] = {}
    for (name, *rest), value in values.items():
        by_field.setdefault(name, {})[tuple(rest)] = value
    return kind(**{name: own[()] if () in own else build(types[name], own) for name, own in by_field.items()})
