"""Images with label maps: layouts of folders, datasets, selection, and pairs that are none."""

import numpy as np
import pytest
from helpers.pictures import image_folder, png
from helpers.scenes import (
    IDS,
    NAMES,
    cityscapes_folder,
    load_scenes,
    save_scenes,
    scene,
    scene_folder,
    scene_rows,
    with_palette,
    write_scene,
)

from optin_cli.data.images.label_maps import IGNORED, LabelIds
from optin_cli.errors import DataError
from optin_cli.tasks.registry import load_task

RAW = np.array([7, 8, 11, *[0] * 253], np.uint8)
"""Ids that Cityscapes' labelIds files have for its classes 0 to 2, and 0 (unlabelled) for all else."""


def seeds(samples):
    """The seed of every image's label map, which must be that of its image."""
    found = []
    for row in range(len(samples)):
        seed = int(samples.images[row].name.rpartition("/")[2].partition(".")[0])
        labels = scene(seed)[1].astype(int)
        np.testing.assert_array_equal(samples.classes(row), np.where(labels == 255, IGNORED, labels))
        assert samples.size(row) == labels.shape
        found.append(seed)
    return sorted(found)


# Where they are found


def around(root):
    scene_folder(root / "train", 2)
    scene_folder(root / "val", 3, first=10)


def within(root):
    for split, first, count in (("training", 0, 2), ("validation", 10, 3)):
        for number in range(first, first + count):
            images, labels = root / "images" / split, root / "annotations" / split
            write_scene(images / f"{number}.png", labels / f"{number}.png", number)


def nested(root):
    within(root)
    for kind in ("images", "annotations"):
        for split in ("training", "validation"):
            folder = root / kind / split
            (folder / "deep").mkdir()
            for path in sorted(folder.glob("*1.png")):
                path.rename(folder / "deep" / path.name)


@pytest.mark.parametrize("make", [around, within, nested])
def test_folders_of_splits_lie_around_or_within(tmp_path, make):
    make(tmp_path)
    samples = load_scenes(tmp_path)
    assert samples.split == "validation" and samples.labelled and seeds(samples) == [10, 11, 12]
    calibration = load_scenes(tmp_path, role="calibration")
    assert calibration.split == "train" and len(calibration) == 2 and not calibration.labelled


def test_one_folder_without_splits(tmp_path):
    samples = load_scenes(scene_folder(tmp_path / "streets", 3))
    assert (samples.name, samples.split, seeds(samples)) == ("streets", "all", [0, 1, 2])


@pytest.mark.parametrize(
    ("ending", "ids"), [("_gtFine_labelTrainIds", None), ("_gtFine_labelIds", RAW)], ids=["trainIds", "labelIds"]
)
def test_cityscapes_layout(tmp_path, ending, ids):
    cityscapes_folder(tmp_path, ending=ending, ids=ids)
    order = LabelIds(19, (255,), order=tuple(range(19)))
    samples = load_scenes(tmp_path, task=load_task("cityscapes"), ids=order)
    assert samples.split == "validation" and len(samples) == 2
    cities = [picture.name.partition("/")[2].partition("/")[0] for picture in samples.images]
    assert sorted(cities) == ["aachen", "bonn"]
    for row, city in enumerate(cities):
        labels = scene(3 + ("aachen", "bonn").index(city))[1].astype(int)
        np.testing.assert_array_equal(samples.classes(row), np.where(labels == 255, IGNORED, labels))
    assert len(load_scenes(tmp_path, role="calibration")) == 2


def test_train_ids_come_before_label_ids(tmp_path):
    cityscapes_folder(tmp_path, ending="_gtFine_labelIds", ids=RAW)
    cityscapes_folder(tmp_path)
    samples = load_scenes(tmp_path, ids=LabelIds(19, (255,)))
    assert all(picture.name.endswith("_labelTrainIds.png") for picture in samples.maps)


def test_images_alone_serve_calibration_and_comparison(tmp_path):
    folder = image_folder(tmp_path / "bare", 2)
    for role in ("calibration", "evaluation"):
        samples = load_scenes(folder, role=role)
        assert len(samples) == 6 and not samples.labelled and samples.classes(0) is None
    scene_folder(tmp_path / "half", 2)
    for path in (tmp_path / "half" / "labels").iterdir():
        path.unlink()
    (tmp_path / "half" / "labels").rmdir()
    assert not load_scenes(tmp_path / "half").labelled


def test_datasets_hold_images_and_maps(tmp_path):
    for columns in (("image", "annotation"), ("photo", "truth")):
        folder = tmp_path / columns[0]
        save_scenes(folder, scene_rows(), *columns)
        samples = load_scenes(folder, label_column=None if columns[0] == "image" else "truth")
        assert len(samples) == 3 and samples.labelled
        for row in range(3):
            seed = int(samples.images[row].name.removeprefix("row ")) - 1
            np.testing.assert_array_equal(samples.classes(row) == IGNORED, scene(seed)[1] == 255)
    with pytest.raises(DataError, match=r"no column 'mask' of label maps: it has columns .* hold images"):
        load_scenes(folder, label_column="mask")


def test_the_dataset_of_a_task_is_opened_by_its_place(monkeypatch):
    import datasets

    asked = []

    def fake(path, config, **place):
        asked.append((path, config, place))
        rows = [dict(zip(("image", "annotation"), row.values(), strict=True)) for row in scene_rows()]
        features = datasets.Features({"image": datasets.Image(), "annotation": datasets.Image()})
        return datasets.Dataset.from_list(rows, features=features)

    monkeypatch.setattr(datasets, "load_dataset", fake)
    samples = load_scenes(None, task=load_task("ade20k"), ids=LabelIds(150, (255,)))
    place = {"split": "validation", "data_dir": "scene_parsing", "revision": "refs/convert/parquet"}
    assert asked == [("zhoubolei/scene_parse_150", None, place)] and samples.labelled and len(samples) == 3


# Selection


def test_selection_depends_on_images_and_the_hash_on_labels(tmp_path):
    folder = scene_folder(tmp_path / "a", 6)
    few = load_scenes(folder, limit=3)
    assert [picture.name for picture in few.images] == [p.name for p in load_scenes(folder).head(3).images]
    assert few.head(2).maps == few.maps[:2] and few.total == 6
    again = load_scenes(scene_folder(tmp_path / "b", 6), limit=3)
    assert again.sha256 == few.sha256
    label = folder / "labels" / few.maps[0].name.rpartition("/")[2]
    with_palette(label)
    assert load_scenes(folder, limit=3).sha256 != few.sha256, "another file, whatever it decodes to"


def test_a_palette_is_read_by_its_indices(tmp_path):
    folder = scene_folder(tmp_path / "scenes", 2)
    with_palette(folder / "labels" / "1.png")
    assert seeds(load_scenes(folder)) == [0, 1]


def test_what_the_maps_meant_is_recorded(tmp_path):
    samples = load_scenes(scene_folder(tmp_path, 2))
    assert samples.constants == {"skipped_images": 0, "ignore_index": [255], "reduce_labels": False}
    assert load_scenes(tmp_path, role="calibration").constants == {"skipped_images": 0}


# What is refused


def unlabelled(root):
    (root / "labels" / "1.png").unlink()


def orphan(root):
    (root / "images" / "2.png").unlink()


def other_size(root):
    (root / "labels" / "1.png").write_bytes(png(scene(1, width=31)[1]))


def unknown_id(root):
    (root / "labels" / "1.png").write_bytes(png(np.full((20, 30), 5, np.uint8)))


def coloured(root):
    (root / "labels" / "1.png").write_bytes(png(scene(1)[0]))


def broken(root):
    (root / "labels" / "1.png").write_bytes(b"\x89PNG")


def doubled(root):
    (root / "images" / "1.jpg").write_bytes(png(scene(1)[0]))


def emptied(root):
    for path in (root / "images").iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (unlabelled, ["1 of 4 images", "have no label map in", "images/1.png"]),
        (orphan, ["1 of 4 label maps", "have no image in", "labels/2.png"]),
        (other_size, ["labels/1.png has 20 x 31 pixels", "images/1.png has 20 x 30", "expected the same size"]),
        (unknown_id, ["labels/1.png has the id 5, in 600 pixels", "brick, grass, water"]),
        (coloured, ["labels/1.png holds colours (mode RGB)"]),
        (broken, ["labels/1.png cannot be decoded"]),
        (doubled, ["images/1.jpg and images/1.png, which only their endings tell apart"]),
        (emptied, ["images holds no images", "found nothing"]),
    ],
)
def test_pairs_that_are_none_are_refused(tmp_path, spoil, words):
    spoil(scene_folder(tmp_path / "scenes"))
    with pytest.raises(DataError) as caught:
        load_scenes(tmp_path / "scenes", ids=LabelIds(3, IDS.ignored, names=NAMES))
    assert all(word in caught.value.message for word in words), caught.value.message


def test_an_empty_or_missing_split_is_refused(tmp_path):
    around(tmp_path)
    for path in (tmp_path / "val" / "images").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="images holds no images"):
        load_scenes(tmp_path)
    scene_folder(tmp_path / "other" / "train")
    with pytest.raises(DataError, match="has splits train; expected validation or test for evaluation"):
        load_scenes(tmp_path / "other")
    with pytest.raises(DataError, match="absent does not exist"):
        load_scenes(tmp_path / "absent")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file is a file; expected a folder of images"):
        load_scenes(tmp_path / "file")
