"""Image batches: contents, decoding in the background, sizes that differ."""

import threading

import pytest
import torch
from helpers.pictures import batches, image_folder, load_images, pixels, png, tensor

from optin_cli.data.images.decode import decode_image
from optin_cli.errors import DataError, UsageError
from optin_cli.options.images import ImageOptions


def test_batches_hold_what_was_asked_for(tmp_path):
    samples = load_images(image_folder(tmp_path / "set", 3))
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
    samples = load_images(image_folder(tmp_path / "set", 20), options=ImageOptions(prefetch=2, workers=2))
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
    samples = load_images(image_folder(tmp_path / "set", 20), options=ImageOptions(prefetch=2))
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
        list(batches(load_images(folder), batch_size=7))


def test_an_image_that_breaks_later_is_named(tmp_path):
    folder = image_folder(tmp_path / "set", 2)
    samples = load_images(folder)
    (folder / "blue" / "1.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"The image blue/1.png cannot be decoded: the file is empty\."):
        list(batches(samples))
    (folder / "blue" / "1.png").unlink()
    with pytest.raises(DataError, match=r"blue/1\.png of set cannot be read any more"):
        list(batches(samples))
    with pytest.raises(UsageError, match="batch size is 0"):
        batches(samples, batch_size=0)


def test_another_size_than_the_model_takes_is_refused(tmp_path):
    samples = load_images(image_folder(tmp_path / "set", 2))
    assert next(iter(batches(samples, shape=(3, 16, 16)))).size == 4
    with pytest.raises(DataError, match=r"leaves images as \(3, 16, 16\) .*, but its model takes \(3, 24, 24\)"):
        next(iter(batches(samples, shape=(3, 24, 24))))
