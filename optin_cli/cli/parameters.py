"""Parameters of commands, generated from the options classes that they take."""

import functools
import inspect
from collections.abc import Callable, Collection
from dataclasses import is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer

from optin_cli.cli import completion
from optin_cli.cli.numbers import NUMBER, PARSERS, WHOLE_NUMBER
from optin_cli.errors import UsageError
from optin_cli.options.declare import PANELS, Declared, Offer, build, declared

WIDEST = 22
"""Most letters of a list of choices in the column of values; longer ones are for the help text."""


def command(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command one parameter for every option of the options classes among its parameters.

    A parameter annotated with an options class, or with `Annotated[class, offer(...)]`, becomes the options that the
    class declares, and the command gets the object that is built from them. Options of several classes with the same
    flag are one option. `earlier` of the result: flags of earlier versions, without dashes, and the ones of today.
    """
    groups: dict[str, tuple[type, list[Declared]]] = {}
    parameters: dict[str, inspect.Parameter] = {}
    # Not get_type_hints, which on Python 3.10 hides the annotation of what is None by default in an Optional.
    for name, parameter in inspect.signature(function, eval_str=True).parameters.items():
        kind, taken = _options_class(parameter.annotation)
        if kind is None:
            parameters[name] = parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            continue
        groups[name] = kind, list(declared(kind, taken))
        for one in groups[name][1]:
            parameters.setdefault(one.flag, _parameter(one))

    @functools.wraps(function)
    def run(**given: Any) -> Any:
        built: dict[str, Any] = {
            name: build(kind, {one.path: _checked(one, given[_name(one)]) for one in options})
            for name, (kind, options) in groups.items()
        }
        return function(**{name: given[name] for name in parameters if name in given}, **built)

    shown = sorted(parameters.values(), key=_place)
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
    run.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    run.earlier = {  # type: ignore[attr-defined]
        before.lstrip("-"): one.flag.lstrip("-")
        for _, options in groups.values()
        for one in options
        for before in one.option.earlier
    }
    return run


def _place(parameter: inspect.Parameter) -> int:
    """Where a help page shows a parameter: arguments first, then options by panel."""
    details = get_args(parameter.annotation)
    info = next((detail for detail in details if isinstance(detail, typer.models.OptionInfo)), None)
    return -1 if info is None else PANELS.index(info.rich_help_panel or PANELS[-1])


def given_flags(context: typer.Context, kind: type) -> list[str]:
    """Flags of an options class that the user gave."""
    sources = {one.flag: context.get_parameter_source(_name(one)) for one in declared(kind)}
    return [flag for flag, source in sources.items() if source is not None and source.name != "DEFAULT"]


def whole_numbers_of(text: str, flag: str) -> tuple[int, ...]:
    """Split a comma-separated list of whole numbers."""
    parts = [part.strip() for part in text.split(",")]
    if not all(WHOLE_NUMBER.fullmatch(part) for part in parts):
        raise UsageError(f"{flag} {text!r} is not a whole number or a comma-separated list of them.")
    return tuple(map(int, parts))


def shares_of(text: str, flag: str) -> tuple[float, ...]:
    """Split a comma-separated list of numbers."""
    parts = [part.strip() for part in text.split(",")]
    if not all(NUMBER.fullmatch(part) for part in parts):
        percent = [part.removesuffix("%").strip() for part in parts if part.endswith("%")]
        shares = [f"{float(part) / 100:g}" for part in percent if NUMBER.fullmatch(part)]
        raise UsageError(
            f"{flag} {text!r} is not a number or a comma-separated list of numbers.",
            hint=f"As a share: {','.join(shares)}." if len(shares) == len(parts) else None,
        )
    return tuple(map(float, parts))


def _options_class(annotation: Any) -> tuple[type | None, Offer | None]:
    kind, taken = annotation, None
    if get_origin(annotation) is Annotated:
        kind, *details = get_args(annotation)
        taken = next((detail for detail in details if isinstance(detail, Offer)), None)
    return (kind, taken) if isinstance(kind, type) and is_dataclass(kind) else (None, None)


def _name(one: Declared) -> str:
    """The parameter's name; a flag is one, but may be a keyword of Python, such as lambda."""
    return f"{one.flag.strip('-').replace('-', '_')}_"


def _parameter(one: Declared) -> inspect.Parameter:
    option, default = one.option, one.default
    kind, item, is_optional = _parts(one.type)
    if option.repeated:
        annotation: Any = list[str]
        default = [*default] or None
    elif item is not None or option.none:
        annotation = str
        default = _text(default, none=option.none)
    else:
        annotation = kind if isinstance(kind, type) else str
    if (is_optional or option.repeated) and default is None:
        annotation = annotation | None
    if option.choices is not None and item is None and isinstance(default, str):
        default = option.said(default)
    details: dict[str, Any] = {
        "metavar": option.metavar or _metavar(one),
        "show_default": option.unset or _wrapping(default) or not option.required,
        "rich_help_panel": one.panel,
    }
    if annotation in (int, float, int | None, float | None):
        details["parser"] = PARSERS[kind]
    if option.choices is not None:
        details["autocompletion"] = _completion(option.shown_choices, several=item is not None)
    return inspect.Parameter(
        _name(one),
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if option.required else default,
        annotation=Annotated[annotation, typer.Option(one.flag, help=option.help, **details)],
    )


def _metavar(one: Declared) -> str | None:
    """What a help page calls the value; None of a flag without one."""
    kind, item, _ = _parts(one.type)
    if one.option.choices is not None and item is None and len("|".join(one.option.shown_choices)) <= WIDEST:
        return "|".join(one.option.shown_choices)
    kind = item or kind
    names = {bool: "", int: "N", float: "NUMBER", Path: "PATH"}
    name = names.get(kind, "NAME")
    return f"{name}[,…]" if item is not None and not one.option.repeated else name


def _text(value: Any, *, none: bool) -> str | None:
    """A value as the command line takes it."""
    if none and (value is None or value == ()):
        return "none"
    return None if value is None else ",".join(map(str, value if isinstance(value, tuple) else (value,)))


def _wrapping(default: Any) -> str | None:
    """A default that is too long for a line of a narrow help page, with room for line breaks; None of others."""
    return ", ".join(default.split(",")) if isinstance(default, str) and len(default) > WIDEST else None


def _checked(one: Declared, given: Any) -> Any:
    """What an option means; a value out of range is refused by the command's own flag."""
    value = _value(one, given)
    one.option.check(value, one.flag)
    return value


def _value(one: Declared, given: Any) -> Any:
    """What an option means."""
    _, item, _ = _parts(one.type)
    if one.option.repeated:
        return tuple(given or ())
    if given is None or (item is None and not one.option.none):
        return one.option.meant(given) if isinstance(given, str) else given
    if one.option.none and given == "none":
        return None if item is None else ()
    if item is str:
        return tuple(part.strip() for part in given.split(","))
    if item is int:
        return whole_numbers_of(given, one.flag)
    shares = shares_of(given, one.flag)
    if item is None and len(shares) > 1:
        raise UsageError(f"{one.flag} is {given}; expected one number, or none.")
    return shares if item is not None else shares[0]


def _parts(annotation: Any) -> tuple[Any, Any, bool]:
    """A type without its None, the type of the items if that is a tuple, and whether there was a None."""
    parts = [part for part in get_args(annotation) if part is not type(None)]
    is_optional = len(parts) == 1 < len(get_args(annotation))
    kind = parts[0] if is_optional else annotation
    return kind, get_args(kind)[0] if get_origin(kind) is tuple else None, is_optional


def _completion(choices: Collection[str], *, several: bool) -> Callable[[str], list[str]]:
    complete = completion.listed if several else completion.starting

    def found(incomplete: str) -> list[str]:
        return complete(incomplete, choices)

    return found
