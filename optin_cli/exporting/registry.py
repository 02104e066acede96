"""Export targets: file formats, what writes and runs them, and where their files lie.

Nothing here imports torch or a runtime, so that names and suffixes are known at once.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from optin_cli.errors import OptinError, UsageError, did_you_mean
from optin_cli.files import check_output

if TYPE_CHECKING:
    from typing import Any

    import numpy
    from torch import nn
    from torch.export import ExportedProgram

    from optin_cli.artifacts.export import Continuation
    from optin_cli.checkpoints.checkpoint import Checkpoint
    from optin_cli.checkpoints.continuing import Continue
    from optin_cli.options.export import ExportOptions


STEM = "model"
INT8 = "int8"
FLOAT16 = "float16"
RECORD = ".optin.json"
"""What an exported file's name is followed by in the name of its record."""
Run = Callable[[Mapping[str, "numpy.ndarray[Any, Any]"]], Mapping[str, "numpy.ndarray[Any, Any]"]]
"""One forward pass of an opened file: arrays by the names of its inputs in, by those of its outputs out."""

Prove = Callable[[Path, bool], "Continuation"]
"""Compares what a file makes of texts with what its checkpoint does; the second argument: whether it is to be exact."""


class ExportError(OptinError):
    """A model that a target cannot express, or an exported file that cannot be used."""


@dataclass(frozen=True)
class Signature:
    """What an exported file takes and gives.

    takes: names of input tensors, in order. shapes: of output tensors, in order. axes: by input, names of its dynamic
    axes.
    """

    takes: tuple[str, ...]
    shapes: Mapping[str, tuple[int | str, ...]]
    axes: Mapping[str, Mapping[int, str]]

    @property
    def gives(self) -> tuple[str, ...]:
        """Names of output tensors, in order."""
        return tuple(self.shapes)


@dataclass(frozen=True)
class Traced(Signature):
    """A model as a program of torch, with its inputs and outputs in the program's order."""

    program: ExportedProgram


@dataclass(frozen=True)
class Quantizer:
    """How a target stores weights as 8-bit integers: by changing a written file, or the model before it is traced.

    needs: packages for it. extra: pip extra that brings them.

    file: makes of a float32 file another. model: makes of a model, in place, one with such weights.
    """

    needs: tuple[str, ...] = ()
    extra: str | None = None
    file: Callable[[Path, Path], None] | None = None
    model: Callable[[nn.Module], None] | None = None


@dataclass(frozen=True)
class Target:
    """A format, and what writes and runs it.

    suffix: ending of its files. extra: pip extra that brings its packages, None where torch is enough. writes_with,
    runs_with: packages needed to write, and to run, whose versions are recorded; the first that runs it is its
    runtime. opsets: versions of its operators that may be asked for, fewest and most; None where it has none.

    write: stores a traced model under a path (and beside it, under names that begin alike), in an opset, and returns
    the opset it took. convert: in place of that, stores a checkpoint's weights in one of `types` without a trace, and
    returns what the file takes and gives. open: returns what runs a file on a number of CPU threads. Its source must be
    self-contained, with all imports inside: the certificate runs it in a process without optin. check: refuses a file
    that would run code, and returns what to open in its place, which may lie in the given temporary folder. int8: how
    it stores weights as 8-bit integers; None if it has no such way. half: makes of a float32 file one that stores
    weights in float16 and computes in float32. types: of weights, by the runtime's names, the default first. takes:
    names of inputs, None for all that the model takes. proving: for a runtime that has the tokenizer too, makes what
    compares a file's way with texts to the checkpoint's; of a file that is to be exact, it refuses any other
    (CertificateError). continuing: for a runtime that keeps keys and values, what continues prompts of a file on a
    number of CPU threads. even: the runtime is slow where an FFN's width is no multiple of this.
    """

    name: str
    suffix: str
    extra: str | None
    writes_with: tuple[str, ...]
    runs_with: tuple[str, ...]
    open: Callable[[str, int], Run]
    write: Callable[[Traced, Path, int | None], int | None] | None = None
    convert: Callable[[Checkpoint, Path, str], Signature] | None = None
    opsets: tuple[int, int] | None = None
    check: Callable[[Path, Path], Path] = lambda path, _scratch: path
    int8: Quantizer | None = None
    half: Callable[[Path, Path], None] | None = None
    types: tuple[str, ...] = ()
    takes: tuple[str, ...] | None = None
    proving: Callable[[Checkpoint], Prove] | None = None
    continuing: Callable[[str, int], Continue] | None = None
    even: int = 1

    @property
    def runtime(self) -> str:
        """The package that runs its files."""
        return self.runs_with[0]

    def form(self, options: ExportOptions) -> str | None:
        """How weights are stored, as the file's name says; None for float32 in a target that has no other types."""
        if options.int8:
            return INT8
        return FLOAT16 if options.dtype == FLOAT16 else options.weight_type or next(iter(self.types), None)

    def require_writing(self, options: ExportOptions) -> None:
        """Refuse to write without packages to write and certify (ExportError), or in no form of it (UsageError)."""
        opset, weight_type = options.opset, options.weight_type
        if options.int8 and self.int8 is None:
            other = "Pass --gguf-type q8_0" if self.types else "Pass --to onnx with it"
            raise UsageError(f"The target {self.name} has no --int8.", hint=f"{other}, or leave it out.")
        if options.dtype == FLOAT16 and self.half is None:
            other = "Pass --gguf-type f16" if self.types else "Pass --to onnx or --to openvino with it"
            raise UsageError(f"The target {self.name} has no --dtype float16.", hint=f"{other}, or leave it out.")
        if weight_type is not None and weight_type not in self.types:
            raise UsageError(f"The target {self.name} has no --gguf-type.", hint="Pass --to gguf, or leave it out.")
        if opset is not None:
            if self.opsets is None:
                raise UsageError(f"The target {self.name} has no opsets.", hint="Leave out --opset.")
            least, most = self.opsets
            if not least <= opset <= most:
                raise UsageError(f"The opset {opset} is not within {least} to {most}, what the exporter writes.")
        self.require(self.packages)
        if options.int8 and self.int8 is not None:
            _require(f"The target {self.name} with --int8", self.int8.needs, self.int8.extra)

    def versions(self, *, int8: bool = False) -> dict[str, str]:
        """Versions of its packages, by the names that they are installed by; with `int8`, of those for it too."""
        packages = (*self.packages, *(self.int8.needs if int8 and self.int8 is not None else ()))
        return {name: importlib.metadata.version(name) for name in map(distribution_of, packages)}

    @property
    def packages(self) -> tuple[str, ...]:
        """What writes and what runs it."""
        return tuple(dict.fromkeys((*self.writes_with, *self.runs_with)))

    def require(self, packages: tuple[str, ...]) -> None:
        """Refuse to go on without its packages (ExportError with the pip extra that brings them)."""
        _require(f"The target {self.name}", packages, self.extra)


def _require(what: str, packages: tuple[str, ...], extra: str | None) -> None:
    missing = [name for name in dict.fromkeys(packages) if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(
            f"{what} needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed.",
            hint=f'pip install "optin-cli[{extra}]"',
        )


def distribution_of(module: str) -> str:
    """What a module is installed by: its own name for most."""
    return importlib.metadata.packages_distributions().get(module, [module])[0]


TARGETS = ("onnx", "torch-export", "openvino", "gguf")
"""Names of the targets, each of which is a module here."""


def target_named(name: str) -> Target:
    """The target of that name (UsageError with the nearest names if there is none)."""
    if name not in TARGETS:
        raise UsageError(f"There is no export target {name!r}.", hint=did_you_mean(name, TARGETS))
    target: Target = importlib.import_module(f"optin_cli.exporting.{name.replace('-', '_')}").TARGET
    return target


def target_of(path: str | Path) -> Target | None:
    """The target whose suffix a file's name has; None where no target's files are called so."""
    return next((target for target in map(target_named, TARGETS) if target.suffix == Path(path).suffix), None)


def place_of(output: Path, target: Target, form: str | None = None) -> Path:
    """The file to write: `output` itself where it has the target's suffix, else model(.FORM).SUFFIX in that folder."""
    if output.suffix == target.suffix and not output.is_dir():
        return output
    return output / f"{STEM if form is None else f'{STEM}.{form}'}{target.suffix}"


def record_of(path: Path) -> Path:
    """The record of an exported file."""
    return path.with_name(path.name + RECORD)


def check_place(path: Path, *, force: bool) -> None:
    """Refuse a file that exists or cannot be written, before any time is spent."""
    if path.parent.exists():
        for each in (path, record_of(path)):
            check_output(each, force=force)
    else:
        check_output(path.parent, force=force, folder=True, into=True)
