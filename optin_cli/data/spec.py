"""Which data a stage reads, and which samples of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from optin_cli.artifacts.base import DataRecord
from optin_cli.errors import DataError, UsageError, did_you_mean
from optin_cli.options.evaluation import EvalOptions
from optin_cli.options.images import ImageOptions
from optin_cli.tasks.registry import load_task, task_names
from optin_cli.tasks.schema import InputKind, Role, Task

HINTS: dict[InputKind, str] = {
    "text": "Name a task (such as sst2), or pass a file or folder with --data.",
    "image": "Name a task (such as cifar10), or pass a folder of images.",
}


def require_input(task: Task, kind: InputKind) -> None:
    """Refuse a task whose samples are of another kind than the model takes (DataError)."""
    if task.input != kind:
        raise DataError(
            f"{task.name} is {'an' if task.input == 'image' else 'a'} {task.input} task, but this model takes {kind}s.",
            hint=f"Tasks on {kind}s: {', '.join(n for n in task_names() if load_task(n).input == kind)}.",
        )


def require_data(task: Task, local: Path | None) -> None:
    """Refuse a task that has no dataset where no local data is named (DataError)."""
    if task.dataset is None and local is None:
        what = "a .jsonl, .csv, .tsv or .parquet file, or a folder" if task.input == "text" else "a folder of images"
        raise DataError(
            f"The task {task.name} has no data of its own: it measures yours.",
            hint=f"Pass it with --data PATH ({what}).",
        )


@dataclass(frozen=True)
class DataSpec:
    """Data of one role, named and not yet read.

    source: an existing file or folder, else the name of a task. path: a local file or folder that is read in place of
    the task's dataset. known: the task, where the caller knows it without `source`; that of `source` must be the same.
    columns: one or two text columns; label_column: column of labels. Both default to the task's, or are guessed.
    limit: most samples to take, None for all; seed: which ones. The stages set both from their options.
    role: chooses the split. labelled: calibration is by labels. images: how images are read. ignored: ids of pixels
    that do not count in label maps, in place of those that the task or checkpoint names. length, stride: tokens of
    the windows that running text is cut into, and between the beginnings of two; None for what is usual.

    Raises:
        UsageError: a limit below 1, or more than two text columns.
    """

    source: str | None = None
    path: str | Path | None = None
    columns: tuple[str, ...] | None = None
    label_column: str | None = None
    limit: int | None = None
    seed: int = 0
    role: Role = "calibration"
    labelled: bool = False
    images: ImageOptions = field(default_factory=ImageOptions)
    ignored: tuple[int, ...] | None = None
    known: Task | None = None
    length: int | None = None
    stride: int | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"The number of samples is {self.limit}; expected at least 1.")
        if self.columns is not None and not 1 <= len(self.columns) <= 2:
            raise UsageError(f"{len(self.columns)} text columns were given; expected one or two.")

    @classmethod
    def of(cls, value: DataSpec | str | Path | None) -> DataSpec:
        """A specification from what a caller may pass: a task name or path as text, or a `Path`."""
        if isinstance(value, DataSpec):
            return value
        return cls(path=value) if isinstance(value, Path) else cls(source=value)

    @property
    def is_named(self) -> bool:
        """Whether there is anything to read."""
        return self.source is not None or self.path is not None or self.known is not None

    @property
    def local(self) -> Path | None:
        """The file or folder to read; None for the task's own data (UsageError if `source` and `path` name one)."""
        if self.source is None or not self._is_path:
            return None if self.path is None else Path(self.path)
        if self.path is not None:
            raise UsageError(f"Both {self.source} and {self.path} name data; expected one of them.")
        return Path(self.source)

    @property
    def _is_path(self) -> bool:
        return bool(self.source) and Path(self.source or "").exists()

    @property
    def task(self) -> Task | None:
        """The task that the data belongs to, None for a plain file or folder.

        Raises:
            DataError: `source` is neither a path nor a task. UsageError: it is another task than the known one.
        """
        if self.source is None or self._is_path:
            return self.known
        if self.source not in task_names():
            raise DataError(
                f"{self.source!r} is neither an existing file or folder nor a known task.",
                hint=did_you_mean(self.source, task_names()),
            )
        if self.known is not None and self.known.name != self.source:
            raise UsageError(f"The data is of task {self.source}, but task {self.known.name} was asked for.")
        return self.known or load_task(self.source)

    def resolve(self, kind: InputKind) -> tuple[Task | None, Path | None]:
        """The task and the local data, at least one of them, for a model that takes `kind`.

        Raises UsageError if nothing is named or names contradict each other, DataError if the task has another input.
        """
        local, task = self.local, self.task
        if task is not None:
            require_input(task, kind)
        if task is None and local is None:
            raise UsageError("No data was named.", hint=HINTS[kind])
        return task, local

    @property
    def record(self) -> DataRecord:
        """How the data is named and selected, as artifacts record it."""
        task, local = self.task, self.local
        return DataRecord(
            task=None if task is None else task.name,
            local=local is not None,
            columns=self.columns,
            label_column=self.label_column,
            labelled=self.labelled,
            samples=self.limit,
            seed=self.seed,
            length=self.length,
        )

    @classmethod
    def recorded(cls, record: DataRecord, path: Path | None, images: ImageOptions) -> DataSpec:
        """The data of a record, which lies at `path` unless it is a task's own."""
        return cls(
            source=record.task,
            path=path,
            columns=record.columns,
            label_column=record.label_column,
            limit=record.samples,
            seed=record.seed,
            labelled=record.labelled,
            images=images,
            length=record.length,
        )

    def calibrating(self, samples: int, seed: int, *, labelled: bool = False, length: int | None = None) -> DataSpec:
        """The same data, of which `samples` calibrate. length: of windows of running text."""
        return replace(self, role="calibration", limit=samples, seed=seed, labelled=labelled, length=length)

    def evaluating(self, options: EvalOptions, task: Task | None) -> DataSpec:
        """The same data, on which `task` is evaluated."""
        return replace(
            self,
            role="evaluation",
            limit=options.samples,
            seed=options.seed,
            known=task,
            ignored=options.ignore_index,
            length=options.max_length or options.seq_len,
            stride=options.stride,
        )
