"""Finding, checking, selecting, decoding and batching images."""

import shutil
import threading
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.pictures import CLASSES, encoded, image_folder, pixels, png
from PIL import Image

from optin_cli.data.images.batches import image_batches
from optin_cli.data.images.decode import decode_image
from optin_cli.data.images.samples import load_image_samples
from optin_cli.data.labels import image_class_ids
from optin_cli.data.spec import DataSpec
from optin_cli.data.text.samples import load_samples
from optin_cli.errors import DataError, UsageError
from optin_cli.options.images import ImageOptions
from optin_cli.progress import SILENT
from optin_cli.tasks.registry import load_task

STRICT, LENIENT = ImageOptions(), ImageOptions(max_unreadable=0.5)


def load(folder, *, split="evaluation", task=None, data=None, options=STRICT, progress=SILENT, **more):
    folder = None if folder is None else str(folder)
    return load_image_samples(DataSpec(folder, data, known=task, role=split, images=options, **more), progress)


def tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def batches(samples, **options):
    options = {"input_name": "x", "batch_size": 4} | options
    return image_batches(samples, options.pop("preprocess", tensor), **options)


def saved(path, rows, splits=(), names=CLASSES):
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))})
    data = datasets.Dataset.from_list(rows, features=features)
    (datasets.DatasetDict(dict.fromkeys(splits, data)) if splits else data).save_to_disk(str(path))
    return data


def rows(each=2):
    return [
        {"image": {"bytes": png(pixels(kind, n)), "path": None}, "label": i}
        for i, kind in enumerate(CLASSES)
        for n in range(each)
    ]


# Where images lie


def test_class_folders_are_numbered_by_name(tmp_path):
    samples = load(image_folder(tmp_path / "set"))
    assert (samples.name, samples.split, samples.total, len(samples)) == ("set", "all", 12, 12)
    assert samples.label_names == CLASSES and samples.skipped == () and samples.skipped_note is None
    for picture, label in zip(samples.images, samples.labels, strict=True):
        assert picture.name.startswith(f"{CLASSES[label]}/")


def test_classes_that_are_numbers_are_in_the_order_of_numbers(tmp_path):
    for name in ("0", "2", "10"):
        image_folder(tmp_path / "made" / name, 1, first=int(name), classes=("blue",))
    assert load(tmp_path / "made").label_names == ("0", "2", "10")


def test_a_class_without_images_keeps_its_number(tmp_path):
    folder = image_folder(tmp_path / "set")
    (folder / "azure").mkdir()
    samples = load(folder)
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
    samples = load(folder)
    assert samples.label_names == CLASSES and samples.total == 13 and not samples.skipped


def test_images_alone_are_unlabelled(tmp_path):
    folder = image_folder(tmp_path / "set")
    for number, path in enumerate(sorted(folder.rglob("*.png"))):
        path.rename(folder / f"{number}.png")
    for kind in CLASSES:
        (folder / kind).rmdir()
    for split in ("calibration", "evaluation"):
        samples = load(folder, split=split)
        assert samples.labels is None and not samples.labelled and len(samples) == 12


def test_images_beside_classes_have_no_label(tmp_path):
    folder = image_folder(tmp_path / "set")
    (folder / "loose.png").write_bytes(png(pixels("blue", 99)))
    assert load(folder, split="calibration").labels is None
    with pytest.raises(DataError, match=r"labelled in part: 1 images, such as loose.png"):
        load(folder)


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
def test_split_folders(tmp_path, made, role, taken):
    for number, split in enumerate(made):
        image_folder(tmp_path / split, 2, first=10 * number)
    samples = load(tmp_path, split=role)
    assert samples.split == taken and samples.label_names == CLASSES
    assert samples.sha256 == load(tmp_path / next(m for m in made if m.lower().startswith(taken[:3]))).sha256


def test_task_says_which_split_evaluates(tmp_path):
    for number, split in enumerate(("train", "validation", "test")):
        image_folder(tmp_path / split, 2, first=10 * number)
    assert load(tmp_path, task=load_task("cifar10")).split == "test"
    assert load(tmp_path, task=load_task("imagefolder")).split == "validation"


def test_a_class_may_be_called_train(tmp_path):
    image_folder(tmp_path, 2)
    (tmp_path / "amber").rename(tmp_path / "train")
    samples = load(tmp_path)
    assert samples.split == "all" and samples.label_names == ("blue", "coral", "train")


def test_missing_split_names_those_there(tmp_path):
    image_folder(tmp_path / "validation")
    with pytest.raises(DataError, match="has splits validation; expected train for calibration"):
        load(tmp_path, split="calibration")


@pytest.mark.parametrize("splits", [(), ("train", "validation")])
def test_saved_datasets(tmp_path, splits):
    saved(tmp_path / "saved", rows(), splits)
    samples = load(tmp_path / "saved")
    assert samples.labels is not None and samples.label_names == CLASSES and samples.total == 6
    assert samples.sha256 == load(image_folder(tmp_path / "set", 2)).sha256, "content alone counts"
    (batch,) = batches(samples, batch_size=6, labels=samples.labels)
    assert batch.inputs["x"].shape == (6, 3, 16, 16)


def test_parquet_of_the_hub(tmp_path):
    data = saved(tmp_path / "saved", rows())
    (tmp_path / "hub").mkdir()
    data.to_parquet(tmp_path / "hub" / "train-00000-of-00001.parquet")
    assert load(tmp_path / "hub", split="calibration").sha256 == load(tmp_path / "saved").sha256
    assert load(tmp_path / "hub" / "train-00000-of-00001.parquet").split == "all"
    with pytest.raises(DataError, match="has splits train; expected validation or test"):
        load(tmp_path / "hub")


def test_hidden_labels_of_a_dataset(tmp_path):
    saved(tmp_path / "none", [row | {"label": -1} for row in rows()])
    assert load(tmp_path / "none").labels is None
    saved(tmp_path / "some", [row | {"label": -1 if n == 1 else 0} for n, row in enumerate(rows())])
    assert load(tmp_path / "some", split="calibration").labels is None
    with pytest.raises(DataError, match="labelled in part: row 2 is the first of 1"):
        load(tmp_path / "some")


def test_dataset_without_images_names_its_columns(tmp_path):
    import datasets

    datasets.Dataset.from_list([{"text": "a", "label": 0}]).save_to_disk(str(tmp_path / "texts"))
    with pytest.raises(DataError, match="no column of images: it has columns text, label"):
        load(tmp_path / "texts")


# What is refused


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
def test_no_image_folder(tmp_path, spoil, words):
    spoil(tmp_path / "set")
    with pytest.raises(DataError, match=words) as caught:
        load(tmp_path / "set")
    assert caught.value.hint


def test_tasks_and_models_of_different_kinds(tmp_path):
    with pytest.raises(DataError, match="The task sst2 is one on texts, but the model takes images") as caught:
        load("sst2")
    assert "cifar10, cifar100, imagefolder, imagenet-1k" in caught.value.hint
    with pytest.raises(DataError, match="The task cifar10 is one on images, but the model takes texts"):
        load_samples(DataSpec("cifar10"))
    with pytest.raises(DataError, match="imagefolder has no data of its own"):
        load("imagefolder")
    with pytest.raises(DataError, match="neither in the local cache nor reachable") as caught:
        load("cifar10")
    assert "a folder of images" in caught.value.hint
    with pytest.raises(UsageError, match="No data was named"):
        load(None, split="calibration")
    with pytest.raises(UsageError, match="number of samples is 0"):
        load("cifar10", limit=0)


# Images that do not decode

GOOD = encoded(Image.fromarray(pixels("blue", 0, 64)), "JPEG")


def flat_png(width, height):
    """A well-formed PNG of one colour: large in pixels, small in bytes."""

    def chunk(kind, content):
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([1, 0, 0, 0, 0])
    body = zlib.compress(bytes((width + 7) // 8 + 1) * height)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


BROKEN = {
    "empty": (b"", "the file is empty"),
    "text": (b"not an image", "no image of a known format"),
    "cut JPEG": (GOOD[: len(GOOD) // 2], "truncated"),
    "cut PNG": (png(pixels("blue", 0))[:200], "truncated"),
    "header alone": (GOOD[:20], ""),
    "bomb": (flat_png(20_000, 20_000), "400000000 pixels"),
    "large": (flat_png(10_000, 10_000), "more than the"),
    "strip": (flat_png(1, 1_000), "a ratio above 200"),
    "floats": (encoded(Image.new("F", (4, 4)), "TIFF"), "32-bit numbers"),
    "program": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image of a known format"),
}


@pytest.mark.parametrize(("content", "reason"), BROKEN.values(), ids=list(BROKEN))
def test_a_broken_image_is_skipped_and_named(tmp_path, content, reason):
    folder = image_folder(tmp_path / "set")
    (folder / "blue" / "broken.jpg").write_bytes(content)
    with pytest.raises(DataError, match=r"1 of 13 images of set, more than the 5.0% .*blue/broken.jpg \(") as caught:
        load(folder)
    assert "--max-unreadable" in caught.value.hint and reason in caught.value.message
    assert "0x" not in caught.value.message, "no addresses"
    samples = load(folder, options=LENIENT)
    assert len(samples) == 12 and samples.total == 13 and len(samples.skipped) == 1
    assert samples.skipped_note.startswith("Skipped 1 of 13 images of set: blue/broken.jpg (")
    assert len(list(batches(samples))) == 3


def test_links_to_nowhere_and_rows_without_image_are_skipped(tmp_path):
    folder = image_folder(tmp_path / "set")
    (folder / "blue" / "gone.png").symlink_to("nowhere.png")
    # A dangling link is no file; what cannot be opened is.
    (folder / "blue" / "folder.png").mkdir()
    assert len(load(folder, options=LENIENT)) == 12
    saved(tmp_path / "saved", [*rows(), {"image": None, "label": 0}])
    assert load(tmp_path / "saved", options=LENIENT).skipped == ("row 7 (the row holds no image)",)


def test_the_next_in_rank_takes_the_place_of_a_broken_one(tmp_path):
    folder = image_folder(tmp_path / "set", 20)
    whole = load(folder)
    first = folder / whole.images[0].name
    taken = load(folder, limit=10)
    assert taken.digests == whole.digests[:10]
    first.write_bytes(first.read_bytes()[:100])
    again = load(folder, limit=10, options=LENIENT)
    assert len(again) == 10
    assert set(taken.digests[1:]) <= set(again.digests), "the others stay"


def test_all_broken_is_an_error_at_any_share(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.png").write_bytes(b"?")
    with pytest.raises(DataError, match="1 of 1 images"):
        load(tmp_path / "set", options=ImageOptions(max_unreadable=0.99))


@pytest.mark.parametrize("wrong", [{"max_unreadable": 1.0}, {"max_unreadable": -0.1}, {"workers": 0}, {"prefetch": 0}])
def test_options_out_of_range(wrong):
    with pytest.raises(UsageError, match=str(next(iter(wrong)))):
        ImageOptions(**wrong)


# Colours

RED = (200, 40, 10)


def cmyk():
    return Image.new("RGB", (8, 8), RED).convert("CMYK")


def palette(**options):
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, *RED])
    return encoded(image, "PNG", **options)


@pytest.mark.parametrize(
    ("content", "colour"),
    [
        (encoded(Image.new("L", (8, 8), 77), "PNG"), (77, 77, 77)),
        (encoded(Image.new("LA", (8, 8), (77, 0)), "PNG"), (77, 77, 77)),
        (encoded(Image.new("1", (8, 8), 1), "PNG"), (255, 255, 255)),
        (encoded(Image.new("RGBA", (8, 8), (*RED, 0)), "PNG"), RED),
        (palette(), RED),
        (palette(transparency=b"\xff\x00"), RED),
        (encoded(cmyk(), "TIFF"), RED),
        (encoded(Image.fromarray(np.full((8, 8), 257 * 100, np.uint16)), "PNG"), (100, 100, 100)),
        (encoded(Image.fromarray(np.full((8, 8), 65535, np.uint16)), "TIFF"), (255, 255, 255)),
        (encoded(Image.new("RGB", (8, 8), RED), "BMP"), RED),
        (encoded(Image.new("RGB", (8, 8), RED), "WEBP", lossless=True), RED),
        (encoded(Image.new("P", (8, 8), 0), "GIF"), (0, 0, 0)),
    ],
)
def test_every_kind_of_image_becomes_rgb(tmp_path, content, colour):
    image = decode_image(content, "a")
    assert image.mode == "RGB" and image.size == (8, 8)
    assert image.getpixel((3, 3)) == colour
    (tmp_path / "a.png").write_bytes(content)
    assert not load(tmp_path).skipped


def test_cmyk_jpeg_is_close(tmp_path):
    colour = decode_image(encoded(cmyk(), "JPEG", quality=95), "a").getpixel((3, 3))
    assert np.abs(np.subtract(colour, RED)).max() < 10


# Selection and batches


def test_selection_depends_on_content_and_seed_alone(tmp_path):
    folder = image_folder(tmp_path / "one", 8)
    other = tmp_path / "two"
    for number, path in enumerate(sorted(folder.rglob("*.png"), reverse=True)):
        target = other / path.parent.name / f"{number:02}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    one, two = (load(f, limit=9, seed=3) for f in (folder, other))
    assert (one.digests, one.labels, one.sha256) == (two.digests, two.labels, two.sha256)
    assert [b.keys for b in batches(one)] == [b.keys for b in batches(two)]
    assert load(folder, limit=9, seed=4).digests != one.digests
    assert one.head(4).digests == one.digests[:4] and len(one.head(4)) == 4 and one.head(4).sha256 == one.sha256


def test_equal_images_have_keys_of_their_own(tmp_path):
    folder = image_folder(tmp_path / "set", 3)
    shutil.copyfile(folder / "amber" / "0.png", folder / "blue" / "again.png")
    samples = load(folder)
    keys = [key for batch in batches(samples, labels=samples.labels) for key in batch.keys]
    assert len(set(keys)) == 10


def test_batches_hold_what_was_asked_for(tmp_path):
    samples = load(image_folder(tmp_path / "set", 3))
    labels = [label + 5 for label in samples.labels]
    made = batches(samples, labels=labels, input_name="pixel_values")
    assert [b.size for b in made] == [4, 4, 1] and len(made) == 3
    for batch in made:
        for row, image, label in zip(batch.rows, batch.inputs["pixel_values"], batch.labels, strict=True):
            assert label == labels[row]
            assert torch.equal(image, tensor(decode_image(samples.images[row].read(), "")))
    assert torch.equal(made[1].inputs["pixel_values"], list(made)[1].inputs["pixel_values"])
    assert [b.keys for b in made[1:]] == [b.keys for b in list(made)[1:]]
    assert next(iter(batches(samples))).labels is None


def test_decoding_is_off_the_main_thread_and_not_far_ahead(tmp_path):
    samples = load(image_folder(tmp_path / "set", 20), options=ImageOptions(prefetch=2, workers=2))
    threads = set()

    def watched(image):
        threads.add(threading.current_thread())
        return tensor(image)

    before = threading.active_count()
    through = iter(
        batches(
            samples,
            preprocess=watched,
        )
    )
    next(through)
    seen = threading.active_count()
    through.close()
    assert threading.main_thread() not in threads and 1 <= len(threads) <= 2
    assert seen > before and threading.active_count() == before, "an abandoned run leaves no thread"


def test_prefetch_is_bounded(tmp_path):
    samples = load(image_folder(tmp_path / "set", 20), options=ImageOptions(prefetch=2))
    count = []
    made = batches(samples, preprocess=lambda image: count.append(1) or tensor(image))
    through = iter(made)
    next(through)
    through.close()
    assert len(count) <= 12, "three batches of four at most"


def test_sizes_that_differ_are_refused(tmp_path):
    folder = image_folder(tmp_path / "set", 2)
    (folder / "blue" / "wide.png").write_bytes(png(pixels("blue", 7, 20)))
    with pytest.raises(DataError, match=r"in different sizes: .* as \(3, "):
        list(batches(load(folder), batch_size=7))


def test_an_image_that_breaks_later_is_named(tmp_path):
    folder = image_folder(tmp_path / "set", 2)
    samples = load(folder)
    (folder / "blue" / "1.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"The image blue/1.png cannot be decoded: the file is empty\."):
        list(batches(samples))
    (folder / "blue" / "1.png").unlink()
    with pytest.raises(DataError, match=r"blue/1\.png of set cannot be read any more"):
        list(batches(samples))
    with pytest.raises(UsageError, match="batch size is 0"):
        batches(samples, batch_size=0)


# Classes


def test_another_size_than_the_model_takes_is_refused(tmp_path):
    samples = load(image_folder(tmp_path / "set", 2))
    assert next(iter(batches(samples, shape=(3, 16, 16)))).size == 4
    with pytest.raises(DataError, match=r"leaves images as \(3, 16, 16\) .*, but its model takes \(3, 24, 24\)"):
        next(iter(batches(samples, shape=(3, 24, 24))))


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (None, [0, 1, 2]),
        (("LABEL_0", "LABEL_1", "LABEL_2"), [0, 1, 2]),
        (("Coral", "Amber", "Blue"), [1, 2, 0]),
        (("coral", "x", "amber", "y", "blue"), [2, 4, 0]),
    ],
)
def test_classes_are_told_by_name_else_by_number(tmp_path, classes, expected):
    samples = load(image_folder(tmp_path / "set"))
    ids = image_class_ids(samples, None, classes, len(classes or CLASSES))
    assert ids == [expected[label] for label in samples.labels]


def test_a_task_names_classes_that_the_model_does_not(tmp_path):
    task = load_task("cifar10")
    folder = tmp_path / "set"
    for number, name in enumerate(("ship", "cat")):
        image_folder(tmp_path / name, 2, first=number, classes=("blue",))
        (tmp_path / name / "blue").rename(folder.mkdir(exist_ok=True) or folder / name)
    samples = load(folder)
    assert sorted(set(image_class_ids(samples, task, None, 10))) == [3, 8]
    assert sorted(set(image_class_ids(samples, load_task("imagefolder"), None, 2))) == [0, 1]
    assert image_class_ids(replace(samples, labels=None), task, None, 10) is None


@pytest.mark.parametrize(("classes", "count"), [(None, 10), (tuple("abcdefghij"), 10), (None, 2)])
def test_another_number_of_classes_names_both(tmp_path, classes, count):
    samples = load(image_folder(tmp_path / "set"))
    with pytest.raises(DataError, match=f"set has 3 classes, amber, blue, coral, but the model has {count}"):
        image_class_ids(samples, None, classes, count)


def test_numbers_beyond_the_model_are_refused(tmp_path):
    saved(tmp_path / "saved", rows())
    samples = replace(load(tmp_path / "saved"), label_names=None)
    assert image_class_ids(samples, None, None, 10) == samples.labels
    with pytest.raises(DataError, match="has 3 classes but the model has 2"):
        image_class_ids(samples, None, None, 2)


def test_tasks_name_every_class():
    assert len(load_task("imagenet-1k").label_names) == 1000
    assert len(load_task("cifar100").label_names) == 100
    assert {load_task(name).input for name in ("cifar10", "imagefolder")} == {"image"}
