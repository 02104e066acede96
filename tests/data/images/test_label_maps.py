"""Label maps: what their ids mean to a model, and files that hold something else than ids."""

import io

import numpy as np
import pytest
from helpers.pictures import png
from helpers.scenes import NAMES, scene
from PIL import Image

from optin_cli.data.images.decode import decode_numbers
from optin_cli.data.images.label_maps import IGNORED, LabelIds, explain_ids
from optin_cli.errors import DataError
from optin_cli.tasks.registry import load_task
from optin_cli.tasks.schema import LabelMapRule

REDUCED = LabelMapRule(ignore_index=255, reduce_labels=True)
PLAIN = LabelMapRule(ignore_index=9, reduce_labels=False)


@pytest.mark.parametrize(
    ("ids", "given", "wanted"),
    [
        (LabelIds(3, (255,)), [0, 1, 2, 255], [0, 1, 2, IGNORED]),
        (LabelIds(3, (1, 7)), [0, 1, 2, 7], [0, IGNORED, 2, IGNORED]),
        (LabelIds(3, (255,), reduced=True), [0, 1, 2, 3, 255], [IGNORED, 0, 1, 2, IGNORED]),
        (LabelIds(3, (255,), order=(2, 0, 1)), [0, 1, 2], [2, 0, 1]),
        (LabelIds(2, (), raw={7: 0, 11: 1}), [7, 11, 0, 200, 65535], [0, 1, IGNORED, IGNORED, IGNORED]),
        (LabelIds(2, (), raw={7: 0, 11: 1}, order=(1, 0)), [7, 11], [1, 0]),
        (LabelIds(300, (65535,)), [299, 65535], [299, IGNORED]),
    ],
)
def test_ids_become_classes(ids, given, wanted):
    assert ids.classes_of(np.array([given], np.uint16), "a.png").tolist() == [wanted]


@pytest.mark.parametrize(
    ("ids", "given", "words"),
    [
        (LabelIds(3, (255,), names=NAMES), [0, 3, 3], ["has the id 3, in 2 pixels", "ids 0 to 2", "brick", "255"]),
        (LabelIds(3, (255,)), [7, 3, 5], ["the ids 3, 5, 7, in 3 pixels"]),
        (LabelIds(3, (255,), reduced=True), [4], ["has the id 4", "ids 1 to 3", "ignored: 0, 255"]),
        (LabelIds(3, ()), [255], ["has the id 255"]),
        (LabelIds(3, ()), [-1, 70_000], ["the ids -1, 70000"]),
    ],
)
def test_unknown_ids_are_refused(ids, given, words):
    with pytest.raises(DataError, match=r"a\.png") as caught:
        ids.classes_of(np.array([given]), "a.png")
    assert all(word in caught.value.message for word in words), caught.value.message
    assert "--ignore-index" in caught.value.hint


def test_ids_are_explained_by_the_task_then_by_the_checkpoint():
    camvid, ade, own = load_task("camvid"), load_task("ade20k"), load_task("semantic-segmentation")
    names = camvid.label_names
    assert explain_ids(camvid, REDUCED, names, 11) == LabelIds(11, (11, 255), order=tuple(range(11)), names=names)
    assert explain_ids(own, PLAIN, names, 11) == LabelIds(11, (9, 255), names=names)
    assert explain_ids(None, REDUCED, None, 4) == LabelIds(4, (255,), reduced=True)
    assert explain_ids(ade, PLAIN, None, 150).reduced
    assert explain_ids(camvid, PLAIN, None, 11, (3, 4)).ignored == (3, 4)


def test_classes_of_the_task_are_found_by_name():
    camvid = load_task("camvid")
    turned = tuple(reversed(camvid.label_names))
    assert explain_ids(camvid, PLAIN, turned, 11).order == tuple(range(10, -1, -1))
    unnamed = tuple(f"LABEL_{number}" for number in range(11))
    assert explain_ids(camvid, PLAIN, unnamed, 11).order is None
    with pytest.raises(DataError, match=r"camvid has 11 classes, sky, building.* but the model has 3 .brick"):
        explain_ids(camvid, PLAIN, NAMES, 3)


def test_raw_ids_of_other_classes_are_refused():
    with pytest.raises(DataError, match="ids of 19 classes, but the model has 3"):
        LabelIds(3, (), raw=load_task("cityscapes").maps.raw_ids)


def test_cityscapes_table_is_the_published_one():
    task = load_task("cityscapes")
    raw = {label: task.label_names[number] for label, number in task.maps.raw_ids.items()}
    assert raw[7] == "road" and raw[11] == "building" and raw[24] == "person" and raw[33] == "bicycle"
    assert [*task.maps.raw_ids.values()] == list(range(19)) and not {9, 10, 14, 15, 16, 18, 29, 30} & raw.keys()


def saved(image):
    stream = io.BytesIO()
    image.save(stream, "TIFF" if image.mode == "I" else "PNG")
    return stream.getvalue()


def test_numbers_of_every_mode_are_read():
    labels = scene(0)[1]
    indexed = Image.frombytes("P", labels.shape[::-1], labels.tobytes())
    indexed.putpalette([5] * 768)
    for image in (Image.fromarray(labels), indexed, Image.fromarray(labels.astype(np.int32))):
        np.testing.assert_array_equal(decode_numbers(saved(image), "x"), labels)
    wide = labels.astype(np.uint16) * 200
    np.testing.assert_array_equal(decode_numbers(saved(Image.fromarray(wide)), "x"), wide)
    np.testing.assert_array_equal(decode_numbers(saved(Image.fromarray(labels > 0)), "x"), labels > 0)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (png(scene(0)[0]), ["x holds colours (mode RGB)"]),
        (png(np.zeros((2, 2, 4), np.uint8)), ["colours (mode RGBA)"]),
        (b"", ["x cannot be decoded", "empty"]),
        (png(scene(0)[1])[:60], ["x cannot be decoded"]),
        (b"text", ["x cannot be decoded", "no image of a known format"]),
    ],
)
def test_what_is_no_label_map_is_refused(content, words):
    with pytest.raises(DataError) as caught:
        decode_numbers(content, "x")
    assert all(word in caught.value.message for word in words), caught.value.message
