"""The `optin` command: one file per subcommand, and the one handler that turns failures into exit statuses."""

import contextlib
import functools
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from optin_cli.cli import common, garbage, interrupts, launched, processors
from optin_cli.cli.demo import demo
from optin_cli.cli.diff import diff
from optin_cli.cli.env import env
from optin_cli.cli.eval import evaluate
from optin_cli.cli.export import export
from optin_cli.cli.families import families
from optin_cli.cli.inspect import inspect
from optin_cli.cli.merge import merge
from optin_cli.cli.profile import profile
from optin_cli.cli.prune import prune
from optin_cli.cli.recipes import recipes
from optin_cli.cli.report import report
from optin_cli.cli.score import score
from optin_cli.cli.search import search
from optin_cli.cli.shrink import shrink
from optin_cli.cli.sweep import sweep
from optin_cli.cli.tasks import tasks
from optin_cli.cli.trim import trim
from optin_cli.errors import Exit, OptinError, ProcessError, UsageError, first_line
from optin_cli.options.declare import OUTPUT
from optin_cli.version import __version__

DEBUG, INTERRUPTED = "OPTIN_DEBUG", "Interrupted."
USAGE_ERROR: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
"""What the parser raises: of click, or of the copy of it that recent versions of Typer carry."""


class Overview(TyperGroup):
    """The list of commands, on whose page flags take no value."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Options of all commands."""
        params = super().get_params(ctx)
        for param in params:
            param.metavar = "" if getattr(param, "is_flag", False) else param.metavar
        return params


app = typer.Typer(
    name="optin",
    cls=Overview,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Make trained transformers smaller without retraining.",
    epilog="Exit status: 0 done, 1 failure, 2 usage, 3 a quality gate not met, 130 interrupted.",
)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"optin {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: bool = typer.Option(
        False, "--version", callback=_show_version, is_eager=True, help="Print the version and stop."
    ),
) -> None:
    del version
    launched.require_shared(context.invoked_subcommand)


def _current(earlier: Mapping[str, str], name: str) -> str:
    """The name of today of a flag that may be one of an earlier version, both without dashes."""
    return earlier.get(name, name)


class Command(TyperCommand):
    """A command whose help page has --help among the other options of its output, and plain names in its usage."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The usage line; Typer sets required arguments in braces."""
        return [piece.replace("{", "").replace("}", "") for piece in super().collect_usage_pieces(ctx)]

    def get_help_option(self, ctx: Any) -> Any:
        """The option, in its panel."""
        option: Any = super().get_help_option(ctx)
        if option is not None:
            option.rich_help_panel, option.metavar = OUTPUT, ""
        return option


START, STEPS, RESULTS, REFERENCE = "Start here", "Step by step", "Results", "Reference"
COMMANDS: tuple[tuple[Callable[..., Any], str, str], ...] = (
    (shrink, START, "optin shrink bert/ --calib train.jsonl --keep-flops 0.5 -o small/"),
    (demo, START, "optin demo"),
    (profile, STEPS, "optin profile bert/"),
    (score, STEPS, "optin score bert/ --calib train.jsonl"),
    (merge, STEPS, "optin merge bert.1-of-2.part.safetensors bert.2-of-2.part.safetensors"),
    (search, STEPS, "optin search bert.scores.safetensors --keep-flops 0.5"),
    (prune, STEPS, "optin prune bert/ --mask bert.mask.json --calib train.jsonl -o small/"),
    (evaluate, STEPS, "optin eval small/ --task sst2 --data validation.jsonl --against bert/ --max-drop 0.01"),
    (export, STEPS, "optin export small/ --to onnx"),
    (trim, STEPS, "optin trim bert/ --calib texts.jsonl -o fewer-tokens/"),
    (sweep, STEPS, "optin sweep bert/ --calib train.jsonl --task sst2 --keep-flops 0.7,0.5 --recipe optin,wanda"),
    (report, RESULTS, "optin report small/ --eval small.eval.json"),
    (diff, RESULTS, "optin diff one.mask.json other.mask.json"),
    (inspect, RESULTS, "optin inspect bert.mask.json"),
    (tasks, REFERENCE, "optin tasks sst2"),
    (families, REFERENCE, "optin families bert"),
    (recipes, REFERENCE, "optin recipes"),
    (env, REFERENCE, "optin env"),
)
"""Each command, the part of the overview that lists it, and an example."""
for command, panel, example in COMMANDS:
    app.command(
        name="eval" if command is evaluate else None,
        cls=Command,
        rich_help_panel=panel,
        epilog=f"Example: {example}",
        context_settings={"token_normalize_func": functools.partial(_current, getattr(command, "earlier", {}))},
    )(command)


def _fail(message: str, hint: str | None, status: int, *, is_told: bool = False) -> NoReturn:
    """Say why and exit. is_told: the message says of an interruption what there is to say."""
    if interrupts.came() and not is_told:  # a library may have turned the interruption into an error of its own
        message, hint, status = INTERRUPTED, None, Exit.INTERRUPTED
    interrupts.end()
    sys.stdout.flush()
    plain = False if os.environ.get("NO_COLOR") else None  # None: colour on terminals
    typer.secho("error: ", fg="red", bold=True, nl=False, err=True, color=plain)
    common.tell(message)
    if hint:
        common.tell(f"  {hint}")
    sys.exit(status)


def _prepare() -> None:
    """Keep libraries quiet: stdout is data and stderr is ours. Settings of the user win."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ["MPLBACKEND"] = "Agg"  # of libraries that draw; a backend that is missing would break them
    if not os.environ.get(DEBUG):
        warnings.simplefilter("ignore")
    garbage.search_rarely()
    processors.set_threads()
    _open_streams()
    interrupts.watch()


def _require_text(arguments: list[str]) -> None:
    """Refuse names that are not text, which no artifact could record (UsageError)."""
    for argument in arguments:
        if any("\ud800" <= letter <= "\udfff" for letter in argument):  # as Python reads bytes that are no UTF-8
            raise UsageError(f"{argument!a} is not valid UTF-8.", hint="Rename the file.")


def _open_streams() -> None:
    """Give streams that the caller closed a place to lead to, so that no file takes their numbers."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_RDWR), number)
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115 - open until the end


def main() -> NoReturn:
    """Run the command line and exit with its status."""
    _prepare()
    try:
        with launched.processes() as processes:
            _require_text(sys.argv[1:])
            result = common.run(typer.main.get_command(app), processes=processes)
    except OptinError as error:
        _debug()
        _fail(error.message, error.hint, error.status, is_told=isinstance(error, ProcessError))
    except USAGE_ERROR as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()
            sys.exit(Exit.USAGE)
        _fail(error.format_message(), "Try the same command with --help.", Exit.USAGE)
    except (KeyboardInterrupt, typer.Abort):
        _fail(INTERRUPTED, None, Exit.INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output left; there is nobody to tell, and flushing at exit would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(Exit.FAILURE)
    except OSError as error:
        _debug()
        place = "" if error.filename is None else f"{error.filename}: "
        _fail(f"{place}{error.strerror or error}.", None, Exit.FAILURE)
    except MemoryError:
        _fail("Not enough memory.", "Use a smaller --batch-size or --rows.", Exit.FAILURE)
    except ImportError as error:
        _debug()
        if (error.name or "").partition(".")[0] == __package__.partition(".")[0]:
            _fail(*_defect(error), Exit.FAILURE)
        _fail(
            f"A library cannot be loaded: {first_line(error)}",
            "It is broken or missing, or this process may not use enough memory (ulimit -v). "
            "See optin env for what is installed.",
            Exit.FAILURE,
        )
    except Exception as error:  # noqa: BLE001 - the last resort: no traceback reaches a user
        _debug()
        if "torch" in sys.modules and isinstance(error, sys.modules["torch"].OutOfMemoryError):
            _fail("Not enough memory on the device.", "Use a smaller --batch-size or --rows.", Exit.FAILURE)
        _fail(*_defect(error), Exit.FAILURE)
    interrupts.end()
    sys.exit(result if isinstance(result, int) else Exit.DONE)


def _defect(error: BaseException) -> tuple[str, str]:
    """What is said of an error that nobody foresaw, and what to do."""
    return (
        f"This is a defect of optin: {type(error).__name__}: {error}",
        f"Run again with {DEBUG}=1 for the traceback, and report it.",
    )


def _debug() -> None:
    if os.environ.get(DEBUG):
        import traceback

        traceback.print_exc()
