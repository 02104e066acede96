"""Find the images of a folder, a saved dataset or a task's dataset, with their class numbers and names.

Nothing is decoded or even read here. A folder holds images by class (`class/name.png`), or images alone, which are
unlabelled; either may lie in folders of splits (`train/`, `validation/` or `val/`, `test/`).
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optin_cli.data.images.decode import SUFFIXES
from optin_cli.data.sources import FALLBACKS, PARQUET, WHOLE, is_saved, open_dataset, open_parquet, open_saved
from optin_cli.errors import DataError
from optin_cli.tasks.schema import Role, Task

SPELLINGS: dict[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid"),
    "test": ("test", "testing"),
}
"""What folders of splits are called."""
NAMED = 5
"""How many names of a long list a message gives."""
UNLABELLED = -1


@dataclass(frozen=True)
class FilePicture:
    """An image file; `name`, for messages, is its path within its folder."""

    path: Path
    name: str

    def read(self) -> bytes:
        """The whole file (OSError where it cannot be read)."""
        return self.path.read_bytes()


@dataclass(frozen=True)
class RowPicture:
    """An image in a row, counted from 0, of a dataset that leaves its column undecoded."""

    rows: Any
    column: str
    number: int

    @property
    def name(self) -> str:
        """The row, counted from 1 as in other messages."""
        return f"row {self.number + 1}"

    def read(self) -> bytes:
        """The whole file, held by the row or named by it (OSError, or DataError where there is none)."""
        value = self.rows[self.number][self.column]
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, str):
            return Path(value).read_bytes()
        if not isinstance(value, bytes):
            raise DataError("the row holds no image")
        return value


Picture = FilePicture | RowPicture
"""An image that is read when it is needed."""


@dataclass(frozen=True)
class Gallery:
    """Images of one split, in the order found, with class numbers or None, and names of classes 0, 1, … where known."""

    name: str
    split: str
    pictures: list[Picture]
    labels: list[int] | None
    label_names: tuple[str, ...] | None


def read_gallery(path: Path | None, task: Task | None, role: Role, label_column: str | None = None) -> Gallery:
    """Images of a folder, of a folder saved by `datasets`, or of Parquet files as the Hub keeps them.

    Args:
        path: any of those; None for the dataset of `task`, from the local Hugging Face cache or the Hub.
        role: calibration takes split "train"; evaluation takes "validation", else "test"; that of `task` before.
        label_column: of a local dataset, instead of the task's or "label".

    Raises:
        DataError: missing, no folder of images, empty, without the wanted split, or labelled in part.
    """
    hint = "Put the images into a folder, one folder a class within it where they are labelled."
    rows = find_rows(path, task, role, hint)
    if rows is not None:
        return _from_rows(*rows, task, role, None if path is None else label_column)
    assert path is not None
    split, folder = split_folder(path, wanted_splits(task, role), role)
    return _from_folder(path.resolve().name, split, folder, role)


def find_rows(path: Path | None, task: Task | None, role: Role, hint: str) -> tuple[str, str, Any] | None:
    """Name, split and rows of a dataset; None for a folder of image files.

    Args:
        path: a folder that `datasets` saved, Parquet files, or a folder of images; None for the dataset of `task`.
        hint: what to do instead of passing another file.

    Raises DataError: there is nothing, or another file.
    """
    if path is None:
        assert task is not None
        return task.name, *open_dataset(task, role)
    if not path.exists():
        raise DataError(f"{path} does not exist.", hint="Pass an existing folder of images.")
    rows = _open_rows(path, wanted_splits(task, role))
    if rows is not None:
        return path.resolve().name, *rows
    if not path.is_dir():
        raise DataError(f"{path} is a file; expected a folder of images.", hint=hint)
    return None


def wanted_splits(task: Task | None, role: Role) -> tuple[str, ...]:
    """The splits that can play a role, that of the task before the usual ones."""
    preferred = [] if task is None else [str(getattr(task.splits, role))]
    return tuple(dict.fromkeys([*preferred, *FALLBACKS[role]]))


def _open_rows(path: Path, wanted: Sequence[str]) -> tuple[str, Any] | None:
    """Split and rows of a folder that `datasets` saved, or of Parquet files; None for what is neither."""
    if path.is_dir() and is_saved(path):
        return open_saved(path, wanted)
    if path.suffix.lower() == PARQUET or (path.is_dir() and any(path.glob(f"*{PARQUET}"))):
        return open_parquet(path, wanted)
    return None


def split_folder(path: Path, wanted: Sequence[str], role: Role) -> tuple[str, Path]:
    """The split to read and its folder; the folder itself, with split "all", where it has none."""
    folders = {folder.name.casefold(): folder for folder in _folders(path)}
    known = {name for spelt in SPELLINGS.values() for name in spelt} | set(wanted)
    splits = [name for name in folders if name in known]
    # A class may be called "train" as well; then its images lie right in it, beside other classes.
    if not splits or (len(splits) < len(folders) and not any(_folders(folders[name]) for name in splits)):
        return WHOLE, path
    for split in wanted:
        for name in SPELLINGS.get(split, (split,)):
            if name in folders:
                return split, folders[name]
    raise DataError(
        f"The folder {path} has splits {', '.join(sorted(splits))}; expected {' or '.join(wanted)} for {role}.",
        hint=f"Name the folder of images itself, such as {folders[splits[0]]}.",
    )


def _from_folder(name: str, split: str, folder: Path, role: Role) -> Gallery:
    loose = _images(folder, [entry for entry in _entries(folder) if entry.is_file()])
    classes = {child.name: _images(folder, files_below(child)) for child in _folders(folder)}
    sorted_images = [picture for images in classes.values() for picture in images]
    if not loose and not sorted_images:
        raise no_images(folder, "Pass a folder of images, or of one folder of images a class.")
    if not loose:
        names = sorted(classes, key=_class_order(list(classes)))
        numbers = {kind: number for number, kind in enumerate(names)}
        labels = [numbers[kind] for kind, images in classes.items() for _ in images]
        return Gallery(name, split, [*sorted_images], labels, tuple(names))
    if sorted_images and role == "evaluation":
        raise DataError(
            f"{folder} is labelled in part: {len(loose):,} images, such as {loose[0].name}, lie beside the folders "
            f"of classes {listed(sorted(classes))}.",
            hint="Move every image into the folder of its class.",
        )
    return Gallery(name, split, [*loose, *sorted_images], None, None)


def _from_rows(name: str, split: str, data: Any, task: Task | None, role: Role, label_column: str | None) -> Gallery:
    found = f"it has columns {', '.join(data.column_names)}"
    column = image_column(name, data, task)
    labels, names = _row_labels(name, data, label_column or (task and task.label_column) or "label", role)
    if label_column is not None and label_column not in data.column_names:
        raise DataError(f"{name} has no label column {label_column!r}: {found}.")
    return Gallery(name, split, row_pictures(name, data, column), labels, names)


def image_columns(data: Any) -> list[str]:
    """Columns of a dataset that hold images, sorted."""
    import datasets

    return sorted(column for column, feature in data.features.items() if isinstance(feature, datasets.Image))


def image_column(name: str, data: Any, task: Task | None) -> str:
    """The column of a dataset that holds its images: the task's, "image" or "img", else the first (DataError if none).

    name: what messages call the dataset.
    """
    kinds = image_columns(data)
    for column in (task and task.image_column, "image", "img", *kinds):
        if column in kinds:
            return str(column)
    raise DataError(
        f"{name} has no column of images: it has columns {', '.join(data.column_names)}.",
        hint="Save it with datasets, its column of images as datasets.Image().",
    )


def row_pictures(name: str, data: Any, column: str) -> list[Picture]:
    """The images of a column, undecoded (DataError if there are no rows)."""
    import datasets

    rows = data.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    if not len(rows):
        raise DataError(f"{name} has no rows.", hint="Pass data with at least one image.")
    return [RowPicture(rows, column, number) for number in range(len(rows))]


def _row_labels(name: str, data: Any, column: str, role: Role) -> tuple[list[int] | None, tuple[str, ...] | None]:
    """Class numbers and names of a dataset's rows; None where there is no such column or nothing in it."""
    if column not in data.column_names:
        return None, None
    values = list(data[column])
    bare = [number for number, value in enumerate(values, start=1) if value is None or value == UNLABELLED]
    if bare and len(bare) < len(values) and role == "evaluation":
        raise DataError(
            f"{name} is labelled in part: row {bare[0]} is the first of {len(bare)} with column {column!r} empty "
            "or -1.",
            hint="Remove those rows, or name another column with --label-column.",
        )
    if bare:
        return None, None
    if all(isinstance(value, str) for value in values):
        names = tuple(sorted(set(values), key=_class_order(values)))
        return [names.index(value) for value in values], names
    wrong = next((n for n, value in enumerate(values, start=1) if type(value) is not int), None)
    if wrong is not None:
        raise DataError(
            f"Row {wrong} of {name}, column {column!r}: expected a class number or name, found "
            f"{values[wrong - 1]!r:.60}."
        )
    declared = getattr(data.features[column], "names", None)
    return values, tuple(declared) if declared else None


def _class_order(names: Sequence[str]) -> Any:
    """How classes are numbered: by name; by number where every name is one, as timm does too."""
    return int if all(re.fullmatch(r"[0-9]+", name) for name in names) else str


def _entries(folder: Path) -> list[Path]:
    """What a folder holds, sorted, less hidden files."""
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"The folder {folder} cannot be read: {error.strerror}.") from error


def _folders(folder: Path) -> list[Path]:
    return [entry for entry in _entries(folder) if entry.is_dir()]


def files_below(folder: Path) -> list[Path]:
    """Every file in a folder and those below; links are followed to files only, since they may lead in circles."""
    files = []
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(root) / name for name in names if not name.startswith(".")]
    return files


def no_images(folder: Path, hint: str) -> DataError:
    """The error for a folder without images, which says what it holds instead."""
    others = [str(path.relative_to(folder)) for path in files_below(folder)]
    held = f"{len(others):,} other files, such as {others[0]}" if others else "nothing"
    return DataError(
        f"The folder {folder} holds no images; expected files ending in {', '.join(SUFFIXES)}, found {held}.", hint=hint
    )


def _images(folder: Path, files: Sequence[Path]) -> list[Picture]:
    return [FilePicture(path, path.relative_to(folder).as_posix()) for path in files if path.suffix.lower() in SUFFIXES]


def listed(names: Sequence[str]) -> str:
    """The first few of them, and how many more there are."""
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED:,} more" if len(names) > NAMED else "")
