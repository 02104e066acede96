"""Commands whose parameters are generated from options classes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from optin_cli.cli.parameters import command, given_flags
from optin_cli.errors import UsageError
from optin_cli.options.declare import Checked, Option, nested, offer, option


@dataclass(frozen=True)
class Kinds(Checked):
    """One option of every kind."""

    count: int = option(3, "--count", "Count.", low=1)
    path: Path | None = option(None, "--path", "Path.")
    lambda_: float = option(1.0, "--lambda", "Weight.")
    on: bool = option(False, "--on", "On.")
    names: tuple[str, ...] = option(("a", "b"), "--names", "Names.", choices=("a", "b", "c"))
    shares: tuple[float, ...] = option((0.5,), "--shares", "Shares.", none=True)
    budget: tuple[float, ...] | None = option(None, "--budget", "Budget.")
    rate: float | None = option(0.8, "--rate", "Rate.", none=True)
    each: tuple[str, ...] = option((), "--each", "Each.", repeated=True)


@dataclass(frozen=True)
class Both(Checked):
    first: Kinds = nested(Kinds(), offer("count"))
    second: Kinds = nested(Kinds(), offer("count", path=Option("--second", "Second.")))


def run(function, *args):
    """What a command got, or the error that it raised."""
    app, got = typer.Typer(), {}
    app.command()(command(function(got)))
    result = CliRunner().invoke(app, args)
    if isinstance(result.exception, UsageError):
        raise result.exception
    return got, result


def takes_kinds(got):
    def main(context: typer.Context, word: Annotated[str, typer.Argument()], *, kinds: Kinds, plain: int = 1) -> None:
        got.update(kinds=kinds, word=word, plain=plain, given=given_flags(context, Kinds))

    return main


def takes_both(got):
    def main(
        *, both: Both, more: Annotated[Kinds, offer("on", count=Option("--more", "More.", required=True))]
    ) -> None:
        got.update(both=both, more=more)

    return main


def test_without_flags_a_command_gets_the_defaults():
    got, _ = run(takes_kinds, "w")
    assert got == {"kinds": Kinds(), "word": "w", "plain": 1, "given": []}


@pytest.mark.parametrize(
    ("args", "values"),
    [
        (("--count", "7", "--on", "--lambda", "2"), {"count": 7, "on": True, "lambda_": 2.0}),
        (("--path", "x"), {"path": Path("x")}),
        (("--names", "c, a"), {"names": ("c", "a")}),
        (("--shares", "0.7,0.6", "--budget", "0.5"), {"shares": (0.7, 0.6), "budget": (0.5,)}),
        (("--shares", "none", "--rate", "none"), {"shares": (), "rate": None}),
        (("--rate", "0.5"), {"rate": 0.5}),
        (("--each", "a", "--each", "b,c"), {"each": ("a", "b,c")}),
    ],
)
def test_flags_become_values_of_the_options_class(args, values):
    got, _ = run(takes_kinds, "w", *args)
    assert got["kinds"] == Kinds(**values)
    assert got["given"] == [arg for arg in dict.fromkeys(args) if arg.startswith("--")] or len(args) > 3


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--count", "0"), "count is 0; expected at least 1"),
        (("--names", "d"), "Unknown --names 'd'"),
        (("--budget", "half"), "--budget 'half' is not a number"),
        (("--budget", "1_0"), "--budget '1_0' is not a number"),
        (("--budget", "\u0665"), "is not a number"),
        (("--rate", "1,2"), "--rate is 1,2; expected one number, or none"),
    ],
)
def test_values_out_of_range_are_usage_errors(args, words):
    with pytest.raises(UsageError, match=words):
        run(takes_kinds, "w", *args)


@pytest.mark.parametrize("value", ["1_0", "\u0667", "0x1", "1.0", "x", ""])
def test_whole_numbers_are_digits(value):
    _, result = run(takes_kinds, "w", "--count", value)
    assert result.exit_code == 2 and "is not a whole number" in result.output


def test_one_flag_fills_every_class_that_shares_it():
    got, _ = run(takes_both, "--count", "5", "--second", "x", "--more", "4", "--on")
    assert got["both"] == Both(Kinds(count=5), Kinds(count=5, path=Path("x")))
    assert got["more"] == Kinds(count=4, on=True)


def test_errors_name_the_flag_of_the_command():
    app = typer.Typer()

    def main(*, kinds: Annotated[Kinds, offer(count=Option("--other", "Other.", low=1))]) -> None:
        del kinds

    app.command()(command(main))
    error = CliRunner().invoke(app, ("--other", "0")).exception
    assert isinstance(error, UsageError) and error.hint == "Pass another --other."


def test_a_required_flag_that_is_missing_exits_2():
    _, result = run(takes_both, "--count", "5")
    assert result.exit_code == 2 and "--more" in result.output


def test_help_lists_every_flag_and_default():
    text = run(takes_kinds, "--help")[1].output
    assert all(flag in text for flag in ("--count", "--lambda", "--each", "[default: 0.5]", "[default: a,b]"))
