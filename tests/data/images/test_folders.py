"""Image folders and datasets: classes, splits, labels, and folders without images."""

import shutil

import pytest
from helpers.pictures import CLASSES, batches, image_folder, load_images, picture_rows, pixels, png, save_pictures

from optin_cli.errors import DataError
from optin_cli.tasks.registry import load_task


def test_class_folders_are_numbered_by_name(tmp_path):
    samples = load_images(image_folder(tmp_path / "set"))
    assert (samples.name, samples.split, samples.total, len(samples)) == ("set", "all", 12, 12)
    assert samples.label_names == CLASSES and samples.skipped == () and samples.skipped_note is None
    for picture, label in zip(samples.images, samples.labels, strict=True):
        assert picture.name.startswith(f"{CLASSES[label]}/")


def test_classes_that_are_numbers_are_in_the_order_of_numbers(tmp_path):
    for name in ("0", "2", "10"):
        image_folder(tmp_path / "made" / name, 1, first=int(name), classes=("blue",))
    assert load_images(tmp_path / "made").label_names == ("0", "2", "10")


def test_a_class_without_images_keeps_its_number(tmp_path):
    folder = image_folder(tmp_path / "set")
    (folder / "azure").mkdir()
    samples = load_images(folder)
    assert samples.label_names == ("amber", "azure", "blue", "coral")
    assert set(samples.labels) == {0, 2, 3}


def test_what_is_no_image_or_hidden_is_passed_over(tmp_path):
    folder = image_folder(tmp_path / "set")
    (folder / "README.md").write_text("text")
    (folder / "amber" / "Thumbs.db").write_bytes(b"1")
    (folder / "amber" / "._0.png").write_bytes(b"1")
    shutil.copytree(folder / "blue", folder / ".cache")
    (folder / "amber" / "deeper").mkdir()
    (folder / "amber" / "deeper" / "9.PNG").write_bytes(png(pixels("amber", 9)))
    samples = load_images(folder)
    assert samples.label_names == CLASSES and samples.total == 13 and not samples.skipped


def test_images_alone_are_unlabelled(tmp_path):
    folder = image_folder(tmp_path / "set")
    for number, path in enumerate(sorted(folder.rglob("*.png"))):
        path.rename(folder / f"{number}.png")
    for kind in CLASSES:
        (folder / kind).rmdir()
    for split in ("calibration", "evaluation"):
        samples = load_images(folder, split=split)
        assert samples.labels is None and not samples.labelled and len(samples) == 12


def test_images_beside_classes_have_no_label(tmp_path):
    folder = image_folder(tmp_path / "set")
    (folder / "loose.png").write_bytes(png(pixels("blue", 99)))
    assert load_images(folder, split="calibration").labels is None
    with pytest.raises(DataError, match=r"labelled in part: 1 images, such as loose.png"):
        load_images(folder)


@pytest.mark.parametrize(
    ("made", "role", "taken"),
    [
        (("train", "validation"), "calibration", "train"),
        (("train", "val"), "evaluation", "validation"),
        (("train", "validation", "test"), "evaluation", "validation"),
        (("Train", "Test"), "evaluation", "test"),
        (("training", "test", "notes"), "calibration", "train"),
    ],
)
def test_folders_of_splits_are_told_apart(tmp_path, made, role, taken):
    for number, split in enumerate(made):
        image_folder(tmp_path / split, 2, first=10 * number)
    samples = load_images(tmp_path, split=role)
    assert samples.split == taken and samples.label_names == CLASSES
    assert samples.sha256 == load_images(tmp_path / next(m for m in made if m.lower().startswith(taken[:3]))).sha256


def test_task_says_which_split_evaluates(tmp_path):
    for number, split in enumerate(("train", "validation", "test")):
        image_folder(tmp_path / split, 2, first=10 * number)
    assert load_images(tmp_path, task=load_task("cifar10")).split == "test"
    assert load_images(tmp_path, task=load_task("imagefolder")).split == "validation"


def test_a_class_may_be_called_train(tmp_path):
    image_folder(tmp_path, 2)
    (tmp_path / "amber").rename(tmp_path / "train")
    samples = load_images(tmp_path)
    assert samples.split == "all" and samples.label_names == ("blue", "coral", "train")


def test_missing_split_names_those_there(tmp_path):
    image_folder(tmp_path / "validation")
    with pytest.raises(DataError, match="has splits validation; expected train for calibration"):
        load_images(tmp_path, split="calibration")


@pytest.mark.parametrize("splits", [(), ("train", "validation")])
def test_saved_datasets_hold_the_same_images(tmp_path, splits):
    save_pictures(tmp_path / "saved", picture_rows(), splits)
    samples = load_images(tmp_path / "saved")
    assert samples.labels is not None and samples.label_names == CLASSES and samples.total == 6
    assert samples.sha256 == load_images(image_folder(tmp_path / "set", 2)).sha256, "content alone counts"
    (batch,) = batches(samples, batch_size=6, labels=samples.labels)
    assert batch.inputs["x"].shape == (6, 3, 16, 16)


def test_parquet_of_the_hub_holds_the_same_images(tmp_path):
    data = save_pictures(tmp_path / "saved", picture_rows())
    (tmp_path / "hub").mkdir()
    data.to_parquet(tmp_path / "hub" / "train-00000-of-00001.parquet")
    assert load_images(tmp_path / "hub", split="calibration").sha256 == load_images(tmp_path / "saved").sha256
    assert load_images(tmp_path / "hub" / "train-00000-of-00001.parquet").split == "all"
    with pytest.raises(DataError, match="has splits train; expected validation or test"):
        load_images(tmp_path / "hub")


def test_hidden_labels_of_a_dataset_are_no_labels(tmp_path):
    save_pictures(tmp_path / "none", [row | {"label": -1} for row in picture_rows()])
    assert load_images(tmp_path / "none").labels is None
    save_pictures(tmp_path / "some", [row | {"label": -1 if n == 1 else 0} for n, row in enumerate(picture_rows())])
    assert load_images(tmp_path / "some", split="calibration").labels is None
    with pytest.raises(DataError, match="labelled in part: row 2 is the first of 1"):
        load_images(tmp_path / "some")


def test_dataset_without_images_names_its_columns(tmp_path):
    import datasets

    datasets.Dataset.from_list([{"text": "a", "label": 0}]).save_to_disk(str(tmp_path / "texts"))
    with pytest.raises(DataError, match="no column of images: it has columns text, label"):
        load_images(tmp_path / "texts")


def empty(folder):
    folder.mkdir()


def texts(folder):
    folder.mkdir()
    (folder / "notes.txt").write_text("hello")


def a_file(folder):
    folder.write_bytes(png(pixels("blue", 0)))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (empty, "holds no images; expected files ending in .*, found nothing"),
        (texts, "found 1 other files, such as notes.txt"),
        (a_file, "is a file; expected a folder of images"),
    ],
)
def test_folders_without_images_are_refused(tmp_path, spoil, words):
    spoil(tmp_path / "set")
    with pytest.raises(DataError, match=words) as caught:
        load_images(tmp_path / "set")
    assert caught.value.hint
