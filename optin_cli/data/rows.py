"""A file, a folder or a dataset name in; rows (dictionaries) with their columns out.

Text files are read by `formats`; Parquet files, saved datasets and datasets of the Hub by `datasets`.
"""

from __future__ import annotations

import contextlib
import glob
import logging
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optin_cli.data.formats import TEXT_READERS, Row, first_line, read_text_file
from optin_cli.errors import DataError, UsageError, did_you_mean
from optin_cli.tasks import Modality, Role, Task, load_task, task_names

FALLBACKS: dict[Role, tuple[str, ...]] = {"calibration": ("train",), "evaluation": ("validation", "test")}
WHOLE = "all"
PARQUET = ".parquet"
SUFFIXES = (*TEXT_READERS, PARQUET)


@dataclass(frozen=True)
class Table:
    """Rows of one split, in file order, numbered from 1 in messages.

    `class_names` holds the names of columns that the data itself declares as classes; `nameless` is true
    where the format has no column names (plain text), so that a lone text column may be called anything.
    """

    name: str
    split: str
    columns: tuple[str, ...]
    rows: list[Row]
    class_names: dict[str, tuple[str, ...]]
    nameless: bool = False


def read_path(path: Path, role: Role, preferred: str | None = None) -> Table:
    """Read a file, a folder saved by `datasets`, or a folder with one file per split.

    Args:
        path: any of those; a file is read whole, whatever the role.
        role: calibration takes split "train"; evaluation takes "validation", else "test".
        preferred: split name to take before those, if there.

    Raises:
        DataError: missing, unreadable, malformed (with the line where known), or without the wanted split.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist.", hint="Pass an existing data file or folder.")
    wanted = [*([preferred] if preferred else []), *FALLBACKS[role]]
    name = path.resolve().name
    if not path.is_dir():
        return _read_files(name, WHOLE, [path])
    if is_saved(path):
        return _from_dataset(name, *open_saved(path, wanted))
    splits = _split_files(path)
    split = next((s for s in wanted if s in splits), None)
    if split is None:
        held = f"has splits {', '.join(sorted(splits))}" if splits else "holds no data files"
        raise DataError(
            f"The folder {path} {held}; expected {' or '.join(wanted)} for {role}.",
            hint=f"Name the file itself, or save the rows as {wanted[0]}.jsonl in that folder.",
        )
    suffixes = {p.suffix for p in splits[split]}
    if len(suffixes) > 1:
        names = ", ".join(p.name for p in splits[split])
        raise DataError(f"The folder {path} has split {split} more than once: {names}.", hint="Name one file.")
    return _read_files(name, split, splits[split])


def is_saved(path: Path) -> bool:
    """Whether a folder is one that `datasets` saved."""
    return (path / "dataset_dict.json").exists() or (path / "state.json").exists()


def resolve_source(
    source: str | None, task: Task | None, data: Path | None, modality: Modality
) -> tuple[Task | None, Path | None]:
    """The task and the local data that are meant, either of which may be None.

    Args:
        source: an existing file or folder, else a task name.
        task: a task that is known already; that of `source` must be the same.
        data: a local copy of the task's data.
        modality: what the model takes.

    Raises:
        UsageError: two that contradict each other.
        DataError: neither a path nor a task, or a task of the other modality.
    """
    if source and Path(source).exists():
        if data is not None:
            raise UsageError(f"Both {source} and {data} name data; expected one of them.")
        data = Path(source)
    elif source is not None:
        if source not in task_names():
            raise DataError(
                f"{source!r} is neither an existing file or folder nor a known task.",
                hint=did_you_mean(source, task_names()),
            )
        if task is not None and task.name != source:
            raise UsageError(f"The data is of task {source}, but task {task.name} was asked for.")
        task = task or load_task(source)
    if task is not None and task.modality != modality:
        raise DataError(
            f"The task {task.name} is one on {task.modality}s, but the model takes {modality}s.",
            hint=f"Tasks on {modality}s: {', '.join(n for n in task_names() if load_task(n).modality == modality)}.",
        )
    return task, data


def open_dataset(task: Task, role: Role) -> tuple[str, Any]:
    """The split of a task's dataset that plays the role, from the local Hugging Face cache or the Hub.

    Raises:
        DataError: it is neither in the cache nor reachable, or the task has no dataset of its own.
    """
    import datasets

    if task.dataset is None:
        raise DataError(
            f"The task {task.name} has no data of its own.", hint="Pass a local file or folder with --data PATH."
        )
    split: str = getattr(task.splits, role)
    name = "/".join(filter(None, (task.dataset.path, task.dataset.config)))
    local = "a .jsonl, .csv, .tsv or .parquet file, or a folder" if task.modality == "text" else "a folder of images"
    try:
        with quiet_datasets():
            return split, datasets.load_dataset(task.dataset.path, task.dataset.config, split=split)
    except Exception as error:
        raise DataError(
            f"The dataset {name} of task {task.name} is neither in the local cache nor reachable: {first_line(error)}",
            hint=f"Pass a local copy with --data PATH ({local}).",
        ) from error


def open_saved(path: Path, wanted: Sequence[str]) -> tuple[str, Any]:
    """The first of the wanted splits of a dataset that `datasets` saved, or the whole where it has none.

    Raises:
        DataError: it cannot be read, or has other splits.
    """
    import datasets

    try:
        with quiet_datasets():
            data = datasets.load_from_disk(str(path))
    except Exception as error:
        raise DataError(f"{path} cannot be read as a saved dataset: {first_line(error)}") from error
    if not isinstance(data, datasets.DatasetDict):
        return WHOLE, data
    split = next((s for s in wanted if s in data), None)
    if split is None:
        raise DataError(f"The saved dataset {path} has splits {', '.join(data)}; expected {' or '.join(wanted)}.")
    return split, data[split]


def open_parquet(path: Path, wanted: Sequence[str]) -> tuple[str, Any]:
    """A Parquet file, whole, or the first of the wanted splits of a folder of them, held in memory.

    Raises:
        DataError: it cannot be read, or has other splits.
    """
    import datasets

    splits = {WHOLE: [path]}
    if path.is_dir():
        splits = {s: [p for p in paths if p.suffix.lower() == PARQUET] for s, paths in _split_files(path).items()}
    split = WHOLE if path.is_file() else next((s for s in wanted if splits.get(s)), None)
    if split is None:
        raise DataError(f"The folder {path} has splits {', '.join(splits)}; expected {' or '.join(wanted)}.")
    try:
        with quiet_datasets(), tempfile.TemporaryDirectory() as cache:
            files = [glob.escape(str(p.resolve())) for p in splits[split]]
            return split, datasets.load_dataset(
                "parquet", data_files=files, split="train", cache_dir=cache, keep_in_memory=True
            )
    except Exception as error:
        raise DataError(f"{path} cannot be read as Parquet files: {first_line(error)}") from error


def read_task(task: Task, role: Role) -> Table:
    """Rows of a task's dataset, from the local Hugging Face cache or the Hub.

    Raises:
        DataError: it is neither in the cache nor reachable.
    """
    split, data = open_dataset(task, role)
    return _from_dataset(task.name, split, data)


@contextlib.contextmanager
def quiet_datasets() -> Iterator[None]:
    """Silence progress bars and logs of `datasets` and its downloads, and restore them after."""
    import datasets
    from huggingface_hub import utils as hub

    bars = [library for library in (datasets, hub) if not library.are_progress_bars_disabled()]
    logger = logging.getLogger("datasets")
    level = logger.level
    try:
        for library in bars:
            library.disable_progress_bars()
        logger.setLevel(logging.CRITICAL)
        yield
    finally:
        logger.setLevel(level)
        for library in bars:
            library.enable_progress_bars()


def _split_files(folder: Path) -> dict[str, list[Path]]:
    """Data files of a folder by split: `train.jsonl`, or shards such as `train-00000-of-00002.parquet`."""
    splits: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES and path.is_file():
            splits.setdefault(re.sub(r"-\d+-of-\d+$", "", path.stem), []).append(path)
    return splits


def _read_files(name: str, split: str, paths: Sequence[Path]) -> Table:
    tables = [_read_file(name, split, path) for path in paths]
    columns = dict.fromkeys(c for table in tables for c in table.columns)
    return Table(
        name=name,
        split=split,
        columns=tuple(columns),
        rows=[row for table in tables for row in table.rows],
        class_names=tables[0].class_names,
        nameless=tables[0].nameless,
    )


def _read_file(name: str, split: str, path: Path) -> Table:
    suffix = path.suffix.lower()
    if suffix == PARQUET:
        return _read_parquet(name, split, path)
    if suffix not in SUFFIXES:
        raise DataError(
            f"{path} cannot be read: its ending {suffix or '(none)'} is not one of {', '.join(SUFFIXES)}.",
            hint="Save it as .jsonl: one JSON object per line.",
        )
    rows = read_text_file(path)
    columns = dict.fromkeys(c for row in rows for c in row)
    return Table(name, split, tuple(columns), rows, {}, nameless=suffix == ".txt")


def _read_parquet(name: str, split: str, path: Path) -> Table:
    import datasets

    try:
        with quiet_datasets(), tempfile.TemporaryDirectory() as cache:
            files = glob.escape(str(path.resolve()))
            data = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True, cache_dir=cache)
            return _from_dataset(name, split, data)
    except Exception as error:
        raise DataError(f"{path} cannot be read as a Parquet file: {first_line(error)}") from error


def _from_dataset(name: str, split: str, data: Any) -> Table:
    features = data.features or {}
    classes = {c: tuple(f.names) for c, f in features.items() if getattr(f, "names", None)}
    rows = [dict(row) for row in data]
    columns = tuple(features) or tuple(dict.fromkeys(c for row in rows for c in row))
    return Table(name, split, columns, rows, classes)
