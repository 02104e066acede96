"""What the subcommands share: option types, output names, progress on stderr, results on stdout."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from optin_cli.cli import interrupts
from optin_cli.errors import Exit, UsageError
from optin_cli.options.images import ImageOptions
from optin_cli.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress

    from optin_cli.checkpoints.checkpoint import Checkpoint


STDIO = "-"


PIPE_WIDTH = 160


MAX_UNREADABLE = ImageOptions().max_unreadable


CheckpointArgument = Annotated[
    str,
    typer.Argument(
        metavar="CKPT",
        help="Checkpoint folder, state-dict file (.safetensors, .pt, .ckpt, .bin), model-hub id or timm:NAME.",
        show_default=False,
    ),
]


Arch = Annotated[
    str | None,
    typer.Option("--arch", metavar="FOLDER", help="Config folder of a state-dict file (also hf:NAME, timm:NAME)."),
]


ArchArgs = Annotated[
    str | None,
    typer.Option("--arch-args", metavar="K=V,…", help="What timm's model was made with, such as img_size=112."),
]


ArchitectureFile = Annotated[
    Path | None,
    typer.Option("--architecture", metavar="JSON", help="Own description of where the model's units lie."),
]


Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, … (default: an accelerator if there is one)")]


Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]


Force = Annotated[bool, typer.Option("--force", help="Replace an existing output.")]


Output = Annotated[
    str | None,
    typer.Option("-o", "--output", metavar="PATH", help="Where to write; - for stdout.", show_default=False),
]


SeqLen = Annotated[
    int | None,
    typer.Option("--seq-len", metavar="N", help="Sequence length that costs are stated for. (default: 128)"),
]


TextColumns = Annotated[
    str | None,
    typer.Option("--text-columns", metavar="A[,B]", help="Text column(s) of the data. (default: guessed)"),
]


LabelColumn = Annotated[str | None, typer.Option("--label-column", metavar="NAME", help="Label column.")]


Data = Annotated[
    Path | None,
    typer.Option("--data", metavar="PATH", help="Local copy of the task's data: a file, or a folder (of images)."),
]


MaxUnreadable = Annotated[
    float,
    typer.Option(
        metavar="SHARE", help="Share of images that may be skipped because they do not decode; more is an error."
    ),
]


Seed = Annotated[int, typer.Option("--seed", help="Seed of sample selection and probes.")]


def run(command: Any, arguments: list[str] | None = None) -> Any:
    """Run a command with its arguments (those of the process if None); failures and interruptions are raised."""
    result = command.main(arguments, prog_name="optin", standalone_mode=False)
    if result == Exit.INTERRUPTED:  # how Typer returns from Ctrl-C
        raise KeyboardInterrupt
    return result


def columns_of(text: str | None) -> tuple[str, ...] | None:
    """Split a comma-separated list of columns."""
    return None if text is None else tuple(part.strip() for part in text.split(","))


def shares_of(text: str, option: str) -> list[float]:
    """Split a comma-separated list of numbers."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f"{option} {text!r} is not a number or a comma-separated list of numbers.") from error


def share_or_none(text: str, option: str) -> float | None:
    """One number, or None for "none"."""
    if text == "none":
        return None
    shares = shares_of(text, option)
    if len(shares) > 1:
        raise UsageError(f"{option} is {text}; expected one number, or none.")
    return shares[0]


def stem_of(source: str) -> str:
    """The name an output takes from its input: bert for dir/bert.ckpt, bert/, org/bert, bert.scores.safetensors."""
    if source == STDIO:
        return "optin"
    path = Path(source)
    name = path.resolve().name if path.is_dir() else path.name
    for suffix in (
        ".scores.safetensors",
        ".mask.json",
        ".latency.json",
        ".json",
        ".safetensors",
        ".pt",
        ".pth",
        ".ckpt",
        ".bin",
    ):
        if name.endswith(suffix) and name != suffix and not path.is_dir():
            return name.removesuffix(suffix)
    return name


def open_checkpoint(
    source: str,
    arch: str | None = None,
    arch_args: str | None = None,
    architecture: Path | None = None,
    device: str | None = None,
) -> Checkpoint:
    """Load a checkpoint (torch is imported only now)."""
    from optin_cli.checkpoints.checkpoint import load
    from optin_cli.checkpoints.libraries.registry import parse_arguments

    arguments = parse_arguments(arch_args)
    return load(source, arch=arch, arch_args=arguments, architecture=architecture, device=device)


def use_threads(threads: int | None) -> None:
    """Compute with that many CPU threads, in torch and in the runtimes of exported files."""
    if threads is None:
        return
    if threads < 1:
        raise UsageError(f"{threads} threads were asked for; expected at least 1.", hint="Leave out --threads for all.")
    import torch

    torch.set_num_threads(threads)


def stderr() -> Console:
    """Console for talk."""
    return _console(error=True)


def stdout() -> Console:
    """Console for tables that are the command's data."""
    return _console(error=False)


def _console(*, error: bool) -> Console:
    """Console that prints names as they are, and cuts none short in files and pipes, which have no width."""
    from rich.console import Console

    stream = sys.stderr if error else sys.stdout
    return Console(stderr=error, highlight=False, markup=False, width=None if stream.isatty() else PIPE_WIDTH)


def say(message: str) -> None:
    """One line of talk on stderr."""
    typer.echo(message, err=True)


class Notes:
    """Prints notes on stderr and checks for interruptions; `update` shows nothing."""

    def update(self, done: float, total: float, what: str) -> None:
        """End the run here if it was interrupted."""
        del done, total, what
        interrupts.check()

    def note(self, text: str) -> None:
        """Print a line."""
        say(text)


class Bar(Notes):
    """Shows how far long work is."""

    def __init__(self, bar: RichProgress, title: str) -> None:
        self.bar = bar
        self.task = bar.add_task("", title=title, total=None)

    def update(self, done: float, total: float, what: str) -> None:
        """Move the bar."""
        interrupts.check()
        self.bar.update(self.task, completed=done, total=total, description=what)


@contextlib.contextmanager
def progress(title: str) -> Iterator[Progress]:
    """Show a progress bar with the time left, on stderr and only on a terminal."""
    from rich import progress as rich_progress
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = stderr()
    columns = (
        TextColumn("{task.fields[title]}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}", style="dim", markup=False),
    )
    with rich_progress.Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield Bar(bar, title)


def require_free(path: str | Path, *, force: bool, folder: bool = False) -> None:
    """Refuse an output that exists or cannot be written, before any time is spent."""
    from optin_cli.files import check_output

    if str(path) != STDIO:
        check_output(Path(path), force=force, folder=folder)


@contextlib.contextmanager
def resumable(state: Path | None) -> Iterator[None]:
    """On interruption, tell how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        if state is not None and state.exists():
            say(f"What is finished is kept in {state}; repeat the command with --resume to go on.")
        raise
