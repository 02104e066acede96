"""Export targets: file formats, what writes and runs them, and where their files lie.

Nothing here imports torch or a runtime, so that names and suffixes are known at once.
"""

from __future__ import annotations

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


STEM = "model"
INT8_STEM = "model.int8"
RECORD = ".optin.json"
"""What an exported file's name is followed by in the name of its record."""
Run = Callable[[Mapping[str, "numpy.ndarray[Any, Any]"]], Mapping[str, "numpy.ndarray[Any, Any]"]]
"""One forward pass of an opened file: arrays by the names of its inputs in, by those of its outputs out."""


class ExportError(OptinError):
    """A model that a target cannot express, or an exported file that cannot be used."""


@dataclass(frozen=True)
class Traced:
    """A model as a program of torch, and the names of what it takes, gives and leaves open.

    takes, gives: names of input and output tensors in the program's order. axes: by input, names of its dynamic axes.
    """

    program: ExportedProgram
    takes: tuple[str, ...]
    gives: tuple[str, ...]
    axes: Mapping[str, Mapping[int, str]]


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
    the opset it took. open: returns what runs a file on a number of CPU threads. Its source must be self-contained,
    with all imports inside: the certificate runs it in a process without optin. check: refuses a file that would run
    code. int8: how it stores weights as 8-bit integers.
    """

    name: str
    suffix: str
    extra: str | None
    writes_with: tuple[str, ...]
    runs_with: tuple[str, ...]
    write: Callable[[Traced, Path, int | None], int | None]
    open: Callable[[str, int], Run]
    int8: Quantizer
    opsets: tuple[int, int] | None = None
    check: Callable[[Path], None] = lambda _path: None

    @property
    def runtime(self) -> str:
        """The package that runs its files."""
        return self.runs_with[0]

    def require_writing(self, opset: int | None, *, int8: bool = False) -> None:
        """Refuse to write without packages to write and certify (ExportError), or in another opset (UsageError)."""
        if opset is not None:
            if self.opsets is None:
                raise UsageError(f"The target {self.name} has no opsets.", hint="Leave out --opset.")
            least, most = self.opsets
            if not least <= opset <= most:
                raise UsageError(f"The opset {opset} is not within {least} to {most}, what the exporter writes.")
        self.require((*self.writes_with, *self.runs_with))
        if int8:
            _require(f"The target {self.name} with --int8", self.int8.needs, self.int8.extra)

    def require(self, packages: tuple[str, ...]) -> None:
        """Refuse to go on without its packages (ExportError with the pip extra that brings them)."""
        _require(f"The target {self.name}", packages, self.extra)


def _require(what: str, packages: tuple[str, ...], extra: str | None) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(
            f"{what} needs {' and '.join(missing)}, which is not installed.", hint=f'pip install "optin-cli[{extra}]"'
        )


TARGETS = ("onnx", "torch-export", "openvino")
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


def place_of(output: Path, target: Target, *, int8: bool = False) -> Path:
    """The file to write: `output` itself where it has the target's suffix, else model(.int8).SUFFIX in that folder."""
    if output.suffix == target.suffix and not output.is_dir():
        return output
    return output / f"{INT8_STEM if int8 else STEM}{target.suffix}"


def record_of(path: Path) -> Path:
    """The record of an exported file."""
    return path.with_name(path.name + RECORD)


def check_place(path: Path, *, force: bool) -> None:
    """Refuse a file that exists or cannot be written, before any time is spent."""
    if path.parent.exists():
        for each in (path, record_of(path)):
            check_output(each, force=force)
    else:
        check_output(path.parent, force=force, folder=True)
