"""What the commands share: groups of options, output names, progress on stderr, results on stdout."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from optin_cli import files
from optin_cli.cli import completion, garbage, launched
from optin_cli.cli.consoles import console, say, tell
from optin_cli.cli.escapes import escaped
from optin_cli.cli.numbers import whole_number
from optin_cli.cli.pace import Notes, progress
from optin_cli.cli.stages import Stage, finish, gate
from optin_cli.errors import Exit, ProcessError
from optin_cli.options.common import SEQ_LEN, THREADS
from optin_cli.options.declare import DATA, MODEL, OUTPUT, Option, nested, offer, option, shared
from optin_cli.options.images import IMAGE_SIZE, ImageOptions, size_of

if TYPE_CHECKING:
    from optin_cli.artifacts.base import Artifact, Took
    from optin_cli.checkpoints.checkpoint import Checkpoint
    from optin_cli.data.spec import DataSpec
    from optin_cli.processes.processes import Processes


__all__ = ["Notes", "Stage", "console", "finish", "gate", "progress", "say", "tell"]
"""What commands take from here and other modules define."""
STDIO = files.STDIO


def flag(name: str, help: str, panel: str = OUTPUT) -> Any:
    """An option without a value."""
    return typer.Option(name, metavar="", help=help, rich_help_panel=panel)


CheckpointArgument = Annotated[
    str,
    typer.Argument(
        metavar="CKPT",
        help="Checkpoint folder, state-dict file (.safetensors, .pt, .ckpt, .bin), model-hub id or timm:NAME.",
        show_default=False,
    ),
]
Json = Annotated[bool, flag("--json", "Print the result as JSON on stdout.")]
Force = Annotated[bool, flag("--force", "Replace an existing output.")]
Resume = Annotated[bool, flag("--resume", "Go on where an interrupted run stopped.")]
Every = Annotated[bool, flag("--all", "Show every group, also of deep models.")]
SeqLen = Annotated[
    int | None,
    typer.Option(
        SEQ_LEN.flag,
        metavar=SEQ_LEN.metavar,
        parser=whole_number,
        help=SEQ_LEN.help,
        show_default=SEQ_LEN.unset,
        rich_help_panel=SEQ_LEN.panel,
    ),
]
Stream = Annotated[
    bool | None,
    typer.Option(
        "--stream/--no-stream",
        metavar="",
        help="Read weights from their files one block at a time.",
        show_default="if they would take more than half of the free memory",
        rich_help_panel=MODEL,
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        "--dtype",
        metavar="TYPE",
        help="What the model computes in: float32, bfloat16, or auto: float32, and bfloat16 on a GPU where weights are "
        "stored so.",
        rich_help_panel=MODEL,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        THREADS.flag,
        metavar="N",
        parser=whole_number,
        help=THREADS.help,
        show_default=THREADS.unset,
        rich_help_panel=THREADS.panel,
    ),
]
TASK = "Task whose metric is measured (sst2, cifar10, …; optin tasks lists them)"


def output(default: str, help: str = "Where to write; - for stdout.") -> Any:
    """The option of where a command writes. default: the name of what it writes without it."""
    return typer.Option("-o", "--output", metavar="PATH", help=help, show_default=default, rich_help_panel=OUTPUT)


def task(help: str, unset: str) -> Any:
    """The option of a task. unset: what is measured without it."""
    return typer.Option(
        "--task",
        metavar="TASK",
        help=help,
        show_default=unset,
        autocompletion=completion.tasks,
        rich_help_panel=DATA,
    )


@dataclass(frozen=True)
class Opening:
    """How a checkpoint is opened."""

    panel: ClassVar[str] = MODEL
    arch: str | None = option(
        None, "--arch", "Config folder of a state-dict file (also hf:NAME, timm:NAME).", metavar="FOLDER"
    )
    arch_args: str | None = option(
        None, "--arch-args", "Arguments of timm.create_model, such as img_size=112.", metavar="K=V,…"
    )
    architecture: Path | None = option(
        None,
        "--architecture",
        "File that describes a family of models of your own (see optin families).",
        metavar="JSON",
    )
    as_class: str | None = option(
        None,
        "--as",
        "Class to open it as, not the one its config names: AutoModel, without the head.",
        metavar="AUTOCLASS",
    )
    image_size: str | None = shared(None, IMAGE_SIZE)
    device: str | None = option(
        None, "--device", "Where to compute: cpu, cuda, …", unset="an accelerator if there is one"
    )

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
        garbage.search_usually()
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


DATA_HELP = "What to evaluate on, in place of the task's own dataset: a file or a folder."


@dataclass(frozen=True)
class Data:
    """What data a command reads."""

    panel: ClassVar[str] = DATA
    source: str | None = option(
        None,
        "--calib",
        "Calibration data, unlabelled: a file or folder of texts or images, or a task (sst2, cifar10, …).",
        metavar="TASK|PATH",
        unset="none, which only magnitude and random do without",
    )
    path: Path | None = option(
        None,
        "--calib-data",
        "Local copy of the calibration task's data: a file or a folder.",
        metavar="PATH",
        earlier=("--data",),
    )
    columns: tuple[str, ...] | None = option(
        None,
        "--text-columns",
        "Columns of the data that hold the text.",
        metavar="A[,B]",
        unset="the task's, or guessed",
    )
    label_column: str | None = option(
        None,
        "--label-column",
        "Column of the data that holds the labels.",
        metavar="NAME",
        unset="the task's, or label",
    )
    images: ImageOptions = nested(ImageOptions(), offer())

    @property
    def files(self) -> tuple[str | Path | None, ...]:
        """What may be read."""
        return self.source, self.path

    def spec(self) -> DataSpec:
        """The data as the stages take them."""
        from optin_cli.data.spec import DataSpec

        return DataSpec(self.source, self.path, self.columns, self.label_column, images=self.images)


TASK_DATA = offer(
    "columns", "label_column", "images", path=Option("--data", DATA_HELP, "PATH", earlier=("--eval-data",))
)
"""Data of --task, so that there is no --calib to name it."""
CALIBRATION = offer(
    "columns",
    "label_column",
    "images",
    source=Option("--calib", "Texts or images, unlabelled, to score and adjust on.", "TASK|PATH", required=True),
    path=Option("--calib-data", "Local copy of the calibration task's data: a file or a folder.", "PATH"),
)
"""Data of --calib, where --data is that of --task."""
EVAL_DATA = offer(
    "columns", "label_column", "images", path=Option("--eval-data", DATA_HELP, "PATH", earlier=("--data",))
)
"""The same where there is calibration data too."""


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


def show(text: str, *, newline: bool = True) -> None:
    """Data on stdout: as it is to files and pipes, and escaped on a terminal."""
    sys.stdout.write((escaped(text) if sys.stdout.isatty() else text) + "\n" * newline)
    sys.stdout.flush()


def target_of(output: str | None, default: str, *, as_json: bool) -> str:
    """Where a command writes: --output, stdout for --json alone, else its default name."""
    return STDIO if output is None and as_json else output or default


def contents(artifact: Artifact, took: Took, target: str, *, as_json: bool) -> str:
    """What is written of an artifact: what the run took is for stdout alone, and only if JSON was asked for."""
    return artifact.dump_with(took) if as_json and target == STDIO else artifact.dump()


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
