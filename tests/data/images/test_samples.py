"""Image samples: selection, keys, and images that cannot be read."""

import shutil
import zlib

import pytest
from helpers.pictures import (
    LENIENT,
    batches,
    encoded,
    image_folder,
    load_images,
    picture_rows,
    pixels,
    png,
    save_pictures,
)
from PIL import Image

from optin_cli.data.spec import DataSpec
from optin_cli.data.text.samples import load_samples
from optin_cli.errors import DataError, UsageError
from optin_cli.options.images import ImageOptions

# What is refused


def test_tasks_on_images_and_on_texts_do_not_mix(tmp_path):
    with pytest.raises(DataError, match="sst2 is a text task, but this model takes images") as caught:
        load_images("sst2")
    assert "cifar10, cifar100, cityscapes, imagefolder, imagenet-1k" in caught.value.hint
    with pytest.raises(DataError, match="cifar10 is an image task, but this model takes texts"):
        load_samples(DataSpec("cifar10"))
    with pytest.raises(DataError, match="imagefolder has no data of its own"):
        load_images("imagefolder")
    with pytest.raises(DataError, match="neither in the local cache nor reachable") as caught:
        load_images("cifar10")
    assert "a folder of images" in caught.value.hint
    with pytest.raises(UsageError, match="No data was named"):
        load_images(None, split="calibration")
    with pytest.raises(UsageError, match="number of samples is 0"):
        load_images("cifar10", limit=0)


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
        load_images(folder)
    assert "--max-unreadable" in caught.value.hint and reason in caught.value.message
    assert "0x" not in caught.value.message, "no addresses"
    samples = load_images(folder, options=LENIENT)
    assert len(samples) == 12 and samples.total == 13 and len(samples.skipped) == 1
    assert samples.skipped_note.startswith("Skipped 1 of 13 images of set: blue/broken.jpg (")
    assert len(list(batches(samples))) == 3


def test_links_to_nowhere_and_rows_without_image_are_skipped(tmp_path):
    folder = image_folder(tmp_path / "set")
    (folder / "blue" / "gone.png").symlink_to("nowhere.png")
    # A dangling link is no file; what cannot be opened is.
    (folder / "blue" / "folder.png").mkdir()
    assert len(load_images(folder, options=LENIENT)) == 12
    save_pictures(tmp_path / "saved", [*picture_rows(), {"image": None, "label": 0}])
    assert load_images(tmp_path / "saved", options=LENIENT).skipped == ("row 7 (the row holds no image)",)


def test_the_next_in_rank_takes_the_place_of_a_broken_one(tmp_path):
    folder = image_folder(tmp_path / "set", 20)
    whole = load_images(folder)
    first = folder / whole.images[0].name
    taken = load_images(folder, limit=10)
    assert taken.digests == whole.digests[:10]
    first.write_bytes(first.read_bytes()[:100])
    again = load_images(folder, limit=10, options=LENIENT)
    assert len(again) == 10
    assert set(taken.digests[1:]) <= set(again.digests), "the others stay"


def test_all_broken_is_an_error_at_any_share(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.png").write_bytes(b"?")
    with pytest.raises(DataError, match="1 of 1 images"):
        load_images(tmp_path / "set", options=ImageOptions(max_unreadable=0.99))


# Selection and batches


def test_selection_depends_on_content_and_seed_alone(tmp_path):
    folder = image_folder(tmp_path / "one", 8)
    other = tmp_path / "two"
    for number, path in enumerate(sorted(folder.rglob("*.png"), reverse=True)):
        target = other / path.parent.name / f"{number:02}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    one, two = (load_images(f, limit=9, seed=3) for f in (folder, other))
    assert (one.digests, one.labels, one.sha256) == (two.digests, two.labels, two.sha256)
    assert [b.keys for b in batches(one)] == [b.keys for b in batches(two)]
    assert load_images(folder, limit=9, seed=4).digests != one.digests
    assert one.head(4).digests == one.digests[:4] and len(one.head(4)) == 4 and one.head(4).sha256 == one.sha256


def test_equal_images_have_keys_of_their_own(tmp_path):
    folder = image_folder(tmp_path / "set", 3)
    shutil.copyfile(folder / "amber" / "0.png", folder / "blue" / "again.png")
    samples = load_images(folder)
    keys = [key for batch in batches(samples, labels=samples.labels) for key in batch.keys]
    assert len(set(keys)) == 10
