"""What the commands share: groups of options, output names, progress on stderr, results on stdout."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from optin_cli import files
from optin_cli.cli import interrupts, launched
from optin_cli.cli.escapes import escaped
from optin_cli.errors import Exit, ProcessError
from optin_cli.options.common import SEQ_LEN, THREADS
from optin_cli.options.declare import nested, offer, option, shared
from optin_cli.options.images import IMAGE_SIZE, ImageOptions, size_of
from optin_cli.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress

    from optin_cli.checkpoints.checkpoint import Checkpoint
    from optin_cli.data.spec import DataSpec
    from optin_cli.processes.processes import Processes


STDIO = files.STDIO
PIPE_WIDTH = 160
SAY_EVERY = 30.0
"""Seconds between two lines that say how far work is."""
CheckpointArgument = Annotated[
    str,
    typer.Argument(
        metavar="CKPT",
        help="Checkpoint folder, state-dict file (.safetensors, .pt, .ckpt, .bin), model-hub id or timm:NAME.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing output.")]
Output = Annotated[
    str | None, typer.Option("-o", "--output", metavar="PATH", help="Where to write; - for stdout.", show_default=False)
]
SeqLen = Annotated[int | None, typer.Option(SEQ_LEN.flag, metavar=SEQ_LEN.metavar, help=SEQ_LEN.help)]
Stream = Annotated[
    bool | None,
    typer.Option(
        "--stream/--no-stream",
        help="Read weights from their files one block at a time. (default: if they would take more than half of the "
        "free memory)",
        show_default=False,
    ),
]
Threads = Annotated[int | None, typer.Option(THREADS.flag, help=THREADS.help)]
Dtype = Annotated[
    str,
    typer.Option(
        "--dtype",
        metavar="auto|float32|bfloat16",
        help="What the model computes in; auto: float32, and bfloat16 on a GPU where weights are stored so.",
    ),
]


@dataclass(frozen=True)
class Opening:
    """How a checkpoint is opened."""

    arch: str | None = option(
        None, "--arch", "Config folder of a state-dict file (also hf:NAME, timm:NAME).", metavar="FOLDER"
    )
    arch_args: str | None = option(
        None, "--arch-args", "What timm's model was made with, such as img_size=112.", metavar="K=V,…"
    )
    architecture: Path | None = option(
        None, "--architecture", "Own description of where the model's units lie.", metavar="JSON"
    )
    as_class: str | None = option(
        None,
        "--as",
        "Class to open it as, not the one its config names: AutoModel, without the head.",
        metavar="AUTOCLASS",
    )
    image_size: str | None = shared(None, IMAGE_SIZE)
    device: str | None = option(None, "--device", "cpu, cuda, … (default: an accelerator if there is one)")

    def load(
        self,
        source: str,
        context: typer.Context | None = None,
        *,
        dtype: str = "float32",
        stream: bool | None = False,
    ) -> Checkpoint:
        """Load a checkpoint (torch is imported only now).

        Args:
            context: of a command whose processes share work on it. dtype, stream: as of `checkpoints.checkpoint.load`.
        """
        from optin_cli.checkpoints.checkpoint import load

        arguments, size = self.arguments(), self.size
        checkpoint = load(
            source,
            arch=self.arch,
            arch_args=arguments,
            architecture=self.architecture,
            as_class=self.as_class,
            image_size=size,
            device=own_device(self.device, context),
            dtype=dtype,
            stream=stream,
        )
        for note in checkpoint.notes:
            say(note)
        return shared_by(checkpoint, context)

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of images, if the user named them."""
        return None if self.image_size is None else size_of(self.image_size)

    @property
    def files(self) -> tuple[str | Path | None, ...]:
        """What it may read besides the checkpoint."""
        return self.arch, self.architecture

    def arguments(self) -> dict[str, Any]:
        """What timm's model was made with, by name."""
        from optin_cli.checkpoints.libraries.registry import parse_arguments

        return parse_arguments(self.arch_args)


@dataclass(frozen=True)
class Data:
    """What data a command reads."""

    source: str | None = option(
        None, "--calib", "Task name (sst2, cifar10, …), or a file or folder of texts or images.", metavar="TASK|PATH"
    )
    path: Path | None = option(
        None, "--data", "Local copy of the task's data: a file, or a folder (of images).", metavar="PATH"
    )
    columns: tuple[str, ...] | None = option(
        None, "--text-columns", "Text column(s) of the data. (default: the task's, else guessed)", metavar="A[,B]"
    )
    label_column: str | None = option(None, "--label-column", "Label column.", metavar="NAME")
    images: ImageOptions = nested(ImageOptions(), offer())

    @property
    def files(self) -> tuple[str | Path | None, ...]:
        """What may be read."""
        return self.source, self.path

    def spec(self) -> DataSpec:
        """The data as the stages take them."""
        from optin_cli.data.spec import DataSpec

        return DataSpec(self.source, self.path, self.columns, self.label_column, images=self.images)


TASK_DATA = offer("path", "columns", "label_column", "images")
"""Data of --task, so that there is no --calib to name it."""


def run(command: Any, arguments: list[str] | None = None, *, processes: Processes | None = None) -> Any:
    """Run a command with its arguments (those of the process if None); failures and interruptions are raised.

    processes: that share its work, its context's `obj`.
    """
    result = command.main(arguments, prog_name="optin", standalone_mode=False, obj=processes)
    if result == Exit.INTERRUPTED:  # how Typer returns from Ctrl-C
        raise KeyboardInterrupt
    return result


def own_device(asked: str | None, context: typer.Context | None) -> str | None:
    """The device of this process, of those of a command, where `asked` is that of all."""
    processes: Processes | None = None if context is None else context.obj
    return asked if processes is None else processes.device(asked)


def shared_by(checkpoint: Checkpoint, context: typer.Context | None) -> Checkpoint:
    """The checkpoint with the processes of a command, which share work on it."""
    processes: Processes | None = None if context is None else context.obj
    return checkpoint if processes is None else replace(checkpoint, processes=processes)


def stem_of(source: str) -> str:
    """The name an output takes from its input: bert for dir/bert.ckpt, bert/, org/bert, bert.scores.safetensors.

    A link has its own name, which is the one that the user writes.
    """
    from optin_cli.checkpoints.folders import FILE_SUFFIXES

    if source == STDIO:
        return "optin"
    path = Path(source)
    name = path.resolve().name if path.name in ("", "..") else path.name
    for suffix in (".scores.safetensors", ".mask.json", ".latency.json", ".json", *FILE_SUFFIXES):
        if name.endswith(suffix) and name != suffix and not path.is_dir():
            return name.removesuffix(suffix)
    return name


def name_of(path: str) -> str:
    """What artifacts and messages call an input file."""
    return "stdin" if path == STDIO else Path(path).name


def use_threads(threads: int | None) -> None:
    """Compute with that many CPU threads, in torch and in the runtimes of exported files."""
    if threads is None:
        return
    THREADS.check(threads, "--threads")
    import torch

    torch.set_num_threads(threads)


def console(*, error: bool = False) -> Console:
    """Console for data, or for talk on stderr: it prints names as they are, and cuts none short in files and pipes."""
    from optin_cli.cli.consoles import EscapingConsole

    stream = sys.stderr if error else sys.stdout
    return EscapingConsole(stderr=error, highlight=False, markup=False, width=None if stream.isatty() else PIPE_WIDTH)


def say(message: str) -> None:
    """One line of talk on stderr, from the first of several processes alone."""
    if launched.leads():
        tell(message)


def tell(message: str) -> None:
    """One line of talk on stderr, from whichever process."""
    typer.echo(escaped(message), err=True)


def show(text: str, *, newline: bool = True) -> None:
    """Data on stdout: as it is to files and pipes, and escaped on a terminal."""
    sys.stdout.write((escaped(text) if sys.stdout.isatty() else text) + "\n" * newline)
    sys.stdout.flush()


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
        self.bar.update(self.task, completed=done, total=total, description=escaped(what))


class Log(Notes):
    """Says every half minute how far long work is, where there is no terminal to draw on."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.begun = self.said = time.monotonic()
        self.share = 0.0

    def update(self, done: float, total: float, what: str) -> None:
        """Say it, if that is due."""
        interrupts.check()
        now, share = time.monotonic(), done / total if total else 0.0
        if share < self.share:  # the next part of the work
            self.begun = now
        self.share = share
        if now - self.said < SAY_EVERY:
            return
        self.said = now
        left = f", about {timedelta(seconds=round((now - self.begun) * (1 - share) / share))} left" if share else ""
        say(f"{self.title}: {share:.0%}{left} ({what})")


@contextlib.contextmanager
def progress(title: str) -> Iterator[Progress]:
    """Show on stderr how far work is, with the time left: a bar on a terminal, elsewhere a line now and then."""
    from rich import progress as rich_progress
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn

    if not launched.leads():
        yield Notes()
        return
    talk = console(error=True)
    if not talk.is_terminal:
        yield Log(title)
        return
    columns = (
        TextColumn("{task.fields[title]}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}", style="dim", markup=False),
    )
    with rich_progress.Progress(*columns, console=talk, transient=True) as bar:
        yield Bar(bar, title)


def target_of(output: str | None, default: str, *, as_json: bool) -> str:
    """Where a command writes: --output, stdout for --json alone, else its default name."""
    return STDIO if output is None and as_json else output or default


def print_result(artifact: str, target: str | Path, *, as_json: bool) -> None:
    """Print the name of what was written, or the artifact itself; nothing if that went to stdout already."""
    if str(target) != STDIO and launched.leads():
        show(artifact if as_json else str(target), newline=not as_json)


Inputs = Iterable[str | Path | None]


def require_free(
    path: str | Path, *, force: bool, inputs: Inputs = (), folder: bool = False, into: bool = False
) -> None:
    """Refuse an output that exists, cannot be written or would destroy an input, before any time is spent."""
    if str(path) != STDIO and launched.leads():
        files.check_apart(Path(path), inputs)
        files.check_output(Path(path), force=force, folder=folder, into=into)


@contextlib.contextmanager
def resumable(state: Path | None) -> Iterator[None]:
    """On interruption, say how to resume."""
    try:
        yield
    except (KeyboardInterrupt, ProcessError):
        if state is not None and state.exists():
            say(f"What is finished is kept in {state}; repeat the command with --resume to go on.")
        raise
