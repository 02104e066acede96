"""Pictures of segmented images: what their colours say, and the files that are written."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from helpers.scenes import save_segmenter, scene_folder
from PIL import Image

import optin_cli
from optin_cli.data.images.label_maps import IGNORED, LabelIds
from optin_cli.errors import UsageError
from optin_cli.evaluation.metrics import count_pixels
from optin_cli.evaluation.panels import PANEL_WIDTH, mark, paint, spread_palette
from optin_cli.evaluation.pictures import BARE, GAINED, LOST, OTHER, UNCOUNTED, Scene, Shown, differences, draw
from optin_cli.options.evaluation import EvalOptions
from optin_cli.tasks.registry import load_task

OPTIONS = EvalOptions(latency_runs=0, batch_size=2)
NAMES = ("brick", "grass", "water")
PALETTE = np.array([(128, 0, 0), (0, 128, 0), (0, 0, 200)], np.uint8)
LABELS = np.array([[0, 0, 1, 1], [2, 2, IGNORED, IGNORED]], np.int32)
BEFORE = np.array([[0, 1, 1, 2], [2, 0, 1, 1]], np.int32)
AFTER = np.array([[0, 0, 2, 0], [2, 0, 1, 0]], np.int32)


def shown(name, classes, labels=LABELS):
    import torch

    counts = None
    if labels is not None:
        counts = count_pixels(torch.from_numpy(classes), torch.from_numpy(labels), 3, IGNORED)
    return Shown(name, classes, counts)


def the_scene(labels=LABELS, models=(("old", BEFORE), ("new", AFTER))):
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3) * 10
    return Scene("a street", image, labels, [shown(name, c, labels) for name, c in models], PALETTE, NAMES)


def test_differing_pixels_are_told_apart_by_who_is_right():
    marks, legend = differences(the_scene())
    places = {colour: [tuple(place) for place in np.argwhere(mask).tolist()] for colour, mask in marks.items()}
    assert places == {LOST: [(0, 2)], GAINED: [(0, 1)], OTHER: [(0, 3)], BARE: [(1, 3)]}
    texts = dict(legend.rows)
    assert texts[LOST] == ("only old is right", "12.5%") and texts[GAINED][0] == "only new is right"


def test_without_labels_pixels_only_differ():
    marks, _ = differences(the_scene(labels=None))
    assert list(marks) == [BARE] and marks[BARE].sum() == 4


def test_one_model_is_held_against_the_labels():
    marks, _ = differences(the_scene(models=[("new", AFTER)]))
    assert {c: np.argwhere(m).tolist() for c, m in marks.items()} == {LOST: [[0, 2], [0, 3], [1, 1]]}
    assert differences(the_scene(labels=None, models=[("new", AFTER)]))[0] == {}


def test_maps_are_painted_in_the_palette():
    painted = paint(LABELS, PALETTE, UNCOUNTED)
    assert painted.shape == (2, 4, 3)
    assert [tuple(p) for p in painted[1]] == [(0, 0, 200), (0, 0, 200), UNCOUNTED, UNCOUNTED]


def test_marks_lie_on_a_dimmed_image():
    image = np.zeros((1, 2, 3), np.uint8)
    marked = mark(image, {LOST: np.array([[True, False]])})
    assert tuple(marked[0, 0]) == LOST and 100 < marked[0, 1, 0] < 200 and len({*marked[0, 1].tolist()}) == 1


def test_palettes_have_distinct_colours():
    colours = spread_palette(255)
    assert len({tuple(c) for c in colours.tolist()}) == 255 and (0, 0, 0) not in {tuple(c) for c in colours.tolist()}
    assert colours[:3].tolist() == [[128, 0, 0], [0, 128, 0], [128, 128, 0]]


def colours_of(sheet):
    return {colour for _, colour in sheet.getcolors(sheet.width * sheet.height)}


@pytest.mark.parametrize("labels", [LABELS, None], ids=["labelled", "bare"])
@pytest.mark.parametrize("models", [2, 1])
def test_every_picture_holds_what_is_known(labels, models):
    scene = the_scene(labels, [("old", BEFORE), ("new", AFTER)][-models:])
    sheet = draw(scene)
    assert {tuple(colour) for colour in PALETTE.tolist()} <= colours_of(sheet)
    assert (LOST in colours_of(sheet)) == (labels is not None)
    assert (BARE in colours_of(sheet)) == (models == 2)
    assert sheet.width == pytest.approx(3 * PANEL_WIDTH, rel=0.05)


def test_long_names_and_many_classes_stay_within_the_sheet():
    names = tuple(f"class {'x' * 80} {number}" for number in range(40))
    classes = np.arange(40, dtype=np.int32).reshape(5, 8)
    one = Shown("a checkpoint " * 12, classes, None)
    sheet = draw(Scene("t", np.zeros((5, 8, 3), np.uint8), None, [one, one], spread_palette(40), names))
    edge = np.asarray(sheet)[:, -4:]
    assert (edge == 255).all()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    scene_folder(root / "streets", 4)
    save_segmenter(root / "old", seed=2)
    save_segmenter(root / "new", seed=5)
    return root


def test_files_are_written_and_recorded(folder, tmp_path):
    options = replace(OPTIONS, pictures=tmp_path / "drawn", picture_count=3)
    (tmp_path / "drawn").mkdir()
    (tmp_path / "drawn" / "mine.txt").write_text("stays")
    result = optin_cli.evaluate(
        folder / "new", "semantic-segmentation", folder / "streets", against=folder / "old", options=options
    )
    files = {path.name: path for path in (tmp_path / "drawn").glob("*.png")}
    assert (tmp_path / "drawn" / "mine.txt").exists() and len(result.pictures) == 3
    assert {p.file: p.sha256 for p in result.pictures} == {
        name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()
    }
    for picture in result.pictures:
        number = picture.image.removeprefix("images/").removesuffix(".png")
        assert picture.file.endswith(f"-{number}.png")
        assert 0 <= picture.agreement <= 1 and 0 <= picture.pixel_accuracy <= 1
        with Image.open(files[picture.file]) as drawn:
            assert drawn.mode == "RGB" and drawn.width > 3 * PANEL_WIDTH
    again = optin_cli.evaluate(
        folder / "new", "semantic-segmentation", folder / "streets", against=folder / "old", options=options
    )
    assert again == result


def test_the_palette_of_a_task_follows_its_classes_by_name(folder):
    from optin_cli.evaluation.pictures import palette_of

    camvid = load_task("camvid")

    class Samples:
        ids = LabelIds(11, (11,), order=tuple(range(10, -1, -1)))

    assert palette_of(Samples, camvid, 11)[10].tolist() == list(camvid.maps.palette[0])
    assert palette_of(Samples, None, 11).tolist() == spread_palette(11).tolist()


def test_pictures_of_other_models_are_refused(image_checkpoint, pets, folder, tmp_path):
    options = replace(OPTIONS, pictures=tmp_path / "p")
    with pytest.raises(UsageError, match="--pictures draws segmented images, but vit is a ViTForImageClassification"):
        optin_cli.evaluate(image_checkpoint("vit"), "imagefolder", pets, options=options)
    with pytest.raises(UsageError, match="--pictures needs images"):
        optin_cli.evaluate(folder / "old", options=options)
    assert not (tmp_path / "p").exists()
