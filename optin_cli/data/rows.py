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
from optin_cli.errors import DataError
from optin_cli.tasks import Role, Task

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
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return _read_saved(path, name, wanted)
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


def read_task(task: Task, role: Role) -> Table:
    """Rows of a task's dataset, from the local Hugging Face cache or the Hub.

    Raises:
        DataError: it is neither in the cache nor reachable.
    """
    import datasets

    split = task.splits.calibration if role == "calibration" else task.splits.evaluation
    name = "/".join(filter(None, (task.dataset.path, task.dataset.config)))
    try:
        with quiet_datasets():
            data = datasets.load_dataset(task.dataset.path, task.dataset.config, split=split)
            return _from_dataset(task.name, split, data)
    except Exception as error:
        raise DataError(
            f"The dataset {name} of task {task.name} is neither in the local cache nor reachable: {first_line(error)}",
            hint="Pass a local copy with --data PATH (a .jsonl, .csv, .tsv or .parquet file, or a folder).",
        ) from error


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


def _read_saved(path: Path, name: str, wanted: Sequence[str]) -> Table:
    import datasets

    try:
        with quiet_datasets():
            data = datasets.load_from_disk(str(path))
            if not isinstance(data, datasets.DatasetDict):
                return _from_dataset(name, WHOLE, data)
            split = next((s for s in wanted if s in data), None)
            if split is not None:
                return _from_dataset(name, split, data[split])
    except Exception as error:
        raise DataError(f"{path} cannot be read as a saved dataset: {first_line(error)}") from error
    raise DataError(f"The saved dataset {path} has splits {', '.join(data)}; expected {' or '.join(wanted)}.")


def _from_dataset(name: str, split: str, data: Any) -> Table:
    features = data.features or {}
    classes = {c: tuple(f.names) for c, f in features.items() if getattr(f, "names", None)}
    rows = [dict(row) for row in data]
    columns = tuple(features) or tuple(dict.fromkeys(c for row in rows for c in row))
    return Table(name, split, columns, rows, classes)
