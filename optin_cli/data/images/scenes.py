"""Find images and their label maps in folders and datasets. Nothing is decoded here.

Layouts of folders: `images/` with `labels/` (or `annotations/`) beside it, whose files have the same names; and that of
Cityscapes, `leftImg8bit/` and `gtFine/`, whose files begin alike. Folders of splits lie around the two or in both.
A folder of neither layout holds images without label maps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optin_cli.data.images.decode import SUFFIXES
from optin_cli.data.images.folders import (
    FilePicture,
    Picture,
    files_below,
    find_rows,
    image_column,
    image_columns,
    listed,
    no_images,
    row_pictures,
    split_folder,
    wanted_splits,
)
from optin_cli.errors import DataError
from optin_cli.tasks.registry import load_task
from optin_cli.tasks.schema import Role, Task

LOSSLESS = (".bmp", ".gif", ".pgm", ".png", ".tif", ".tiff")
"""Endings of files that keep every id."""
NEEDED = "Pass a folder of images or, to evaluate, of images/ and labels/ with files of the same names."


@dataclass(frozen=True)
class SceneLayout:
    """Where images and label maps lie, as two folders, and how the names of their files end before the suffix.

    label_endings: of which the first is taken that any file has. raw: task whose raw_ids explain files of an ending.
    """

    images: str
    labels: tuple[str, ...]
    image_ending: str = ""
    label_endings: tuple[str, ...] = ("",)
    raw: Mapping[str, str] = field(default_factory=dict)


LAYOUTS = (
    SceneLayout("images", ("labels", "annotations")),
    SceneLayout(
        "leftImg8bit",
        ("gtFine",),
        "_leftImg8bit",
        ("_gtFine_labelTrainIds", "_gtFine_labelIds"),
        {"_gtFine_labelIds": "cityscapes"},
    ),
)


@dataclass(frozen=True)
class Scenes:
    """Images of one split and the label map of each, None where there are none; in the order found.

    raw: the class of each id, where the maps hold ids of another list.
    """

    name: str
    split: str
    images: list[Picture]
    maps: list[Picture] | None
    raw: Mapping[int, int] | None = None


def read_scenes(path: Path | None, task: Task | None, role: Role, label_column: str | None = None) -> Scenes:
    """Images and label maps of a folder, of a folder saved by `datasets`, or of Parquet files.

    Args:
        path: any of those; None for the dataset of `task`, from the local Hugging Face cache or the Hub.
        role: chooses the split as for other images. Calibration has no use for label maps, and looks for none.
        label_column: of a dataset, instead of the task's or its only other column of images.

    Raises:
        DataError: missing, empty, without the wanted split, or images and label maps that are not pairs.
    """
    hint = "Put the images into images/ and their label maps, of the same names, into labels/ beside it."
    rows = find_rows(path, task, role, hint)
    if rows is not None:
        return _from_rows(*rows, task, role, None if path is None else label_column)
    assert path is not None
    name, wanted = path.resolve().name, wanted_splits(task, role)
    layout, around = _layout_of(path), None
    if layout is None:
        around, folder = split_folder(path, wanted, role)
        layout = _layout_of(folder)
        if layout is None:
            return Scenes(name, around, _bare(folder), None)
        path = folder
    inside, images = split_folder(path / layout.images, wanted, role)
    found = _images(images, layout.image_ending)
    split = around or inside
    folders = [path / labels for labels in layout.labels if (path / labels).is_dir()]
    if role == "calibration" or not folders:
        return Scenes(name, split, [*found.values()], None)
    maps, ending = _label_maps(folders[0] / images.relative_to(path / layout.images), layout)
    _require_pairs(found, maps, images, folders[0])
    raw_of = layout.raw.get(ending)
    rule = None if raw_of is None else load_task(raw_of).maps
    return Scenes(
        name, split, [*found.values()], [maps[stem] for stem in found], None if rule is None else rule.raw_ids
    )


def _layout_of(path: Path) -> SceneLayout | None:
    return next((layout for layout in LAYOUTS if (path / layout.images).is_dir()), None)


def _bare(folder: Path) -> list[Picture]:
    """Every image in a folder and those below (DataError if there are none)."""
    found = [FilePicture(path, path.relative_to(folder).as_posix()) for path in _files(folder, SUFFIXES)]
    if not found:
        raise no_images(folder, NEEDED)
    return [*found]


def _images(folder: Path, ending: str) -> dict[str, Picture]:
    """Images in a folder and those below by path less `ending` and suffix (DataError if there are none, or doubles)."""
    found = _by_stem(folder, SUFFIXES, ending)
    if not found:
        raise no_images(folder, NEEDED)
    return found


def _label_maps(folder: Path, layout: SceneLayout) -> tuple[dict[str, Picture], str]:
    """Label maps by path, and how their names end."""
    for ending in layout.label_endings:
        found = _by_stem(folder, LOSSLESS, ending)
        if found:
            return found, ending
    return {}, layout.label_endings[0]


def _by_stem(folder: Path, suffixes: Sequence[str], ending: str) -> dict[str, Picture]:
    found: dict[str, Picture] = {}
    for path in _files(folder, suffixes):
        if not path.stem.endswith(ending):
            continue
        place = path.relative_to(folder)
        stem = place.with_name(path.stem.removesuffix(ending)).as_posix()
        picture = FilePicture(path, f"{folder.name}/{place.as_posix()}")
        if stem in found:
            raise DataError(
                f"{folder} holds {found[stem].name} and {picture.name}, which only their endings tell apart.",
                hint="Remove or rename one: images and label maps are paired by name.",
            )
        found[stem] = picture
    return found


def _files(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    return [path for path in sorted(files_below(folder)) if path.suffix.lower() in suffixes]


def _require_pairs(images: Mapping[str, Picture], maps: Mapping[str, Picture], folder: Path, labels: Path) -> None:
    """Refuse images without a label map, and label maps without an image."""
    alone = [picture.name for stem, picture in images.items() if stem not in maps]
    left = [picture.name for stem, picture in maps.items() if stem not in images]
    if alone:
        raise DataError(
            f"{len(alone):,} of {len(images):,} images of {folder} have no label map in {labels}: {listed(alone)}.",
            hint="Each needs a PNG of the same name there; add it, or remove the image.",
        )
    if left:
        raise DataError(
            f"{len(left):,} of {len(maps):,} label maps of {labels} have no image in {folder}: {listed(left)}.",
            hint="Add the images, or remove the label maps.",
        )


def _from_rows(name: str, split: str, data: Any, task: Task | None, role: Role, label_column: str | None) -> Scenes:
    column = image_column(name, data, task)
    kinds = [other for other in image_columns(data) if other != column]
    wanted = label_column or (task.label_column if task else None)
    labels = wanted if wanted in kinds else kinds[0] if label_column is None and len(kinds) == 1 else None
    if label_column is not None and labels is None:
        raise DataError(
            f"{name} has no column {label_column!r} of label maps: it has columns {', '.join(data.column_names)}, of "
            f"which {', '.join([column, *kinds])} hold images."
        )
    images = row_pictures(name, data, column)
    maps = None if labels is None or role == "calibration" else row_pictures(name, data, labels)
    return Scenes(name, split, images, maps)
