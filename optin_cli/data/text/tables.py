"""Read files, folders and datasets of text as tables: rows (dictionaries) with their columns.

Text files are read by `formats`; Parquet files, saved datasets and datasets of the Hub by `datasets`.
"""

import glob
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optin_cli.data.sources import (
    FALLBACKS,
    PARQUET,
    SUFFIXES,
    WHOLE,
    is_saved,
    open_dataset,
    open_saved,
    quiet_datasets,
    split_files,
)
from optin_cli.data.text.formats import PLAIN, RUNNING, TAGGED, Row, read_text_file
from optin_cli.errors import DataError, first_line
from optin_cli.tasks.schema import Role, Task


@dataclass(frozen=True)
class Table:
    """Rows of one split, in file order, numbered from 1 in messages.

    `class_names` holds the names of columns that the data itself declares as classes, or lists of them; `nameless` is
    true where the format has no column names (plain text), so that a lone text column may be called anything.
    """

    name: str
    split: str
    columns: tuple[str, ...]
    rows: list[Row]
    class_names: dict[str, tuple[str, ...]]
    nameless: bool = False


def read_table(path: Path | None, task: Task | None, role: Role) -> Table:
    """Read a file, a folder saved by `datasets`, or a folder with one file per split.

    Args:
        path: any of those, a file whole, whatever the role; None for the dataset of `task`, from the local Hugging Face
            cache or the Hub.
        role: takes the split of `task`, if there; else calibration "train", and evaluation "validation" or "test".

    Raises:
        DataError: missing, unreadable, malformed (with the line where known), or without the wanted split.
    """
    if path is None:
        assert task is not None
        return _from_dataset(task.name, *open_dataset(task, role))
    if not path.exists():
        raise DataError(f"{path} does not exist.", hint="Pass an existing data file or folder.")
    wanted = [*([] if task is None else [getattr(task.splits, role)]), *FALLBACKS[role]]
    name = path.resolve().name
    if not path.is_dir():
        return _read_files(name, WHOLE, [path], task)
    if is_saved(path):
        return _from_dataset(name, *open_saved(path, wanted))
    splits = split_files(path)
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
    return _read_files(name, split, splits[split], task)


def _read_files(name: str, split: str, paths: Sequence[Path], task: Task | None) -> Table:
    tables = [_read_file(name, split, path, task) for path in paths]
    columns = dict.fromkeys(c for table in tables for c in table.columns)
    return Table(
        name=name,
        split=split,
        columns=tuple(columns),
        rows=[row for table in tables for row in table.rows],
        class_names=tables[0].class_names,
        nameless=tables[0].nameless,
    )


def _read_file(name: str, split: str, path: Path, task: Task | None) -> Table:
    suffix = path.suffix.lower()
    if suffix == PARQUET:
        return _read_parquet(name, split, path)
    if suffix not in SUFFIXES:
        raise DataError(
            f"{path} cannot be read: its ending {suffix or '(none)'} is not one of {', '.join(SUFFIXES)}.",
            hint="Save it as .jsonl: one JSON object per line.",
        )
    # Tagged words come as .txt too, where other tasks have a text a line.
    tagged = suffix == PLAIN and task is not None and task.kind == "token-classification"
    rows = read_text_file(path, TAGGED if tagged else suffix)
    columns = dict.fromkeys(c for row in rows for c in row)
    return Table(name, split, tuple(columns), rows, {}, nameless=suffix in (PLAIN, *RUNNING) and not tagged)


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
    inner = {c: getattr(f, "feature", f) for c, f in features.items()}
    classes = {c: tuple(f.names) for c, f in inner.items() if getattr(f, "names", None)}
    rows = [dict(row) for row in data]
    columns = tuple(features) or tuple(dict.fromkeys(c for row in rows for c in row))
    return Table(name, split, columns, rows, classes)
