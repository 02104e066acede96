"""Semantic segmentation through the command line: the pipeline, its pictures and pages, and bad input."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.desk import refused
from helpers.paths import SHARED
from helpers.pictures import png
from helpers.reports import page_of
from helpers.running import done, run_cli, tree
from helpers.scenes import NAMES, save_segmenter, scene, scene_folder, with_palette
from PIL import Image

SMALL = ("--samples", "8", "--batch-size", "4")
QUIET = ("--latency-runs", "0")
EVAL = ("eval", "net", "--task", "semantic-segmentation", "--data", "streets", *QUIET)
CAMVID = SHARED / "data" / "camvid"
M2F = SHARED / "checkpoints" / "m2f-swin-camvid"


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A tiny checkpoint net/ and scenes streets/train and streets/validation. To be read only."""
    root = tmp_path_factory.mktemp("scenes")
    scene_folder(root / "streets" / "train", 12)
    scene_folder(root / "streets" / "validation", 5, first=100)
    save_segmenter(root / "net", seed=1)
    return root


@pytest.fixture
def work(kept, here):
    """A working directory with the scenes, to be spoiled."""
    for name in ("streets", "net"):
        shutil.copytree(kept / name, here / name)
    return here


def test_every_command_takes_scenes(work):
    done("profile", "net", "-o", "p.json")
    done("score", "net", "--calib", "semantic-segmentation", "--data", "streets", *SMALL, "-o", "s.safetensors")
    done("search", "s.safetensors", "--keep-flops", "0.9", "-o", "m.json")
    done("prune", "net", "--mask", "m.json", "--calib", "streets/train", *SMALL, "-o", "small")
    again = ("--against", "net", "--pictures", "drawn", "--picture-count", "2", "-o", "e.json")
    result = run_cli(*EVAL[:1], "small", *EVAL[2:], *again, "--json", cwd=work)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found.pop("took")["data"] == ["5 samples of streets"]
    assert found == json.loads(Path("e.json").read_text()) and "Traceback" not in result.stderr
    assert (found["task"], found["split"], found["samples"]) == ("semantic-segmentation", "validation", 5)
    assert list(found["metrics"]) == ["mean_iou", "pixel_accuracy"] == list(found["against"]["metrics"])
    assert found["against"]["agreement"] > 0.5, "nine tenths of the MACs, refitted"
    assert list(found["class_iou"]) == [*NAMES] == list(found["against"]["class_iou"])
    assert all(word in result.stderr for word in ("IoU of brick", "pixel_accuracy", "agreement"))
    files = sorted(path.name for path in Path("drawn").iterdir())
    assert files == [picture["file"] for picture in found["pictures"]] and len(files) == 2
    done("report", "small", "-o", "r.html")
    page = page_of("r.html")
    pictures = [*page.all("img")]
    assert len(pictures) == 2 and all(p.attributes["src"].startswith("data:image/png") for p in pictures)
    assert "Intersection over union of each class" in page.text and "agree on" in page.text
    assert "--pictures" not in page.text, "where pictures lie is no part of a result"
    shutil.rmtree("drawn")
    told = done("report", "small", "-o", "r.html", "--force").err
    assert "Left out the pictures of e.json" in told and not [*page_of("r.html").all("img")]
    assert "mean_iou" in done("inspect", "e.json").out
    assert "differ in nothing" in done("diff", "e.json", "e.json").out


def test_a_sweep_of_scenes(work):
    result = done(
        *("sweep", "net", "--calib", "semantic-segmentation", "--task", "semantic-segmentation", "--data", "streets"),
        *("--keep-flops", "0.95,0.9", "--recipe", "optin,magnitude", *SMALL, *QUIET, "-o", "swept", "--json"),
    )
    found = json.loads(result.out)
    assert found["metric"] == "mean_iou" and found["split"] == "validation" and len(found["points"]) == 4
    assert [*found["baseline"]["metrics"]] == ["mean_iou", "pixel_accuracy"]
    for point in found["points"]:
        assert list(point["metrics"]) == ["mean_iou", "pixel_accuracy"] and 0 <= point["agreement"] <= 1
    assert {"sweep.json", "sweep.svg"} <= {path.name for path in Path("swept").iterdir()}
    done("report", "swept", "-o", "r.html")
    assert "Frontier: mean_iou, MACs and latency" in page_of("r.html").text


def test_an_exported_file_segments_alike(work):
    done("export", "net", "--to", "torch-export", "-o", "out")
    found = json.loads(
        done("eval", "out/model.pt2", *EVAL[2:], "--against", "net", "--pictures", "drawn", "--json").out
    )
    assert found["against"]["agreement"] > 0.999 and len(found["pictures"]) == 5
    assert found["metrics"] == pytest.approx(found["against"]["metrics"], abs=1e-3)


def test_another_image_size_is_recorded_and_repeated(work):
    size = ("--image-size", "64x32")
    done("profile", "net", *size, "-o", "p.json")
    done("score", "net", "--calib", "streets/train", *SMALL, *size, "-o", "s.safetensors")
    done("search", "s.safetensors", "--keep-flops", "0.9", "-o", "m.json")
    done("prune", "net", "--mask", "m.json", "--no-refit", "-o", "small")
    done("eval", "small", *EVAL[2:], *size, "--against", "net", "-o", "e.json")
    for name in ("p.json", "m.json", "e.json", "small/optin.json"):
        workload = json.loads(Path(name).read_text())["workload"]
        assert workload == {"batch_size": 1, "image": [3, 64, 32], "resized": True}, name
    lines = {
        line.split()[1]: line for line in json.loads(done("report", "small", "--json", "-o", "r.html").out)["commands"]
    }
    assert {name for name, line in lines.items() if "--image-size 64x32" in line} == {
        "profile",
        "score",
        "prune",
        "eval",
    }


def test_images_alone_calibrate(work):
    shutil.copytree("streets/train/images", "bare")
    bare = done("score", "net", "--calib", "bare", *SMALL, "-o", "a.safetensors", "--json").out
    full = done("score", "net", "--calib", "streets", *SMALL, "-o", "b.safetensors", "--json").out
    assert json.loads(bare)["inputs"]["calibration"]["sha256"] == json.loads(full)["inputs"]["calibration"]["sha256"]


def test_a_palette_png_is_read_by_its_indices(work):
    before = json.loads(done(*EVAL, "--json").out)["metrics"]
    for path in Path("streets/validation/labels").iterdir():
        with_palette(path)
    assert json.loads(done(*EVAL, "--json").out)["metrics"] == before


# Bad input


LABEL, IMAGE = (Path("streets") / "validation" / kind / "101.png" for kind in ("labels", "images"))


def other_size(_work):
    LABEL.write_bytes(png(scene(101, height=21)[1]))


def unknown_ids(_work):
    LABEL.write_bytes(png(np.full((20, 30), 7, np.uint8)))


def no_label(_work):
    LABEL.unlink()


def no_image(_work):
    IMAGE.unlink()


def coloured(_work):
    Image.open(LABEL).convert("RGB").save(LABEL)


def empty(work):
    for path in (work / "streets" / "validation" / "images").iterdir():
        path.unlink()


def all_ignored(work):
    for path in (work / "streets" / "validation" / "labels").iterdir():
        path.write_bytes(png(np.full((20, 30), 255, np.uint8)))


def keeps_shape(work):
    save_segmenter("free", "segformer", processor={"do_resize": False})
    IMAGE.write_bytes(png(scene(101, width=62)[0]))
    LABEL.write_bytes(png(scene(101, width=62)[1]))


def classifier(_work):
    from helpers.models import save_images

    save_images("vit", "vit")


def texts(_work):
    from helpers.models import save_checkpoint

    save_checkpoint("bert")


def nothing(_work):
    pass


BAD = {
    "label map of another size": (other_size, EVAL, 1, ["labels/101.png has 21 x 30", "images/101.png has 20 x 30"]),
    "unknown ids": (unknown_ids, EVAL, 1, ["labels/101.png has the id 7, in 600 pixels", "brick", "--ignore-index"]),
    "missing label map": (no_label, EVAL, 1, ["1 of 5 images", "no label map", "images/101.png"]),
    "missing image": (no_image, EVAL, 1, ["1 of 5 label maps", "no image", "labels/101.png"]),
    "colours": (coloured, EVAL, 1, ["labels/101.png holds colours (mode RGB)", "indices are the ids"]),
    "empty split": (empty, EVAL, 1, ["images holds no images", "found nothing"]),
    "nothing counts": (all_ignored, EVAL, 1, ["Every pixel of the label maps is ignored", "--ignore-index"]),
    "several sizes": (
        keeps_shape,
        ("eval", "free", *EVAL[2:]),
        1,
        ["in different sizes", "101.png", "--image-size", "--batch-size 1"],
    ),
    "images alone": (nothing, (*EVAL[:5], "streets/validation/images", *QUIET), 1, ["no labels to measure images by"]),
    "other classes": (nothing, (*EVAL[:3], "camvid", *EVAL[4:]), 1, ["camvid has 11 classes", "the model has 3"]),
    "no data": (nothing, (*EVAL[:3], "cityscapes", *QUIET), 1, ["cityscapes has no data of its own", "--data"]),
    "labels wanted": (
        nothing,
        ("score", "net", "--calib", "streets", "--criterion", "fisher"),
        1,
        ["needs the loss of one label per sample", "semantic-segmentation"],
    ),
    "size": (nothing, (*EVAL, "--image-size", "wide"), 2, ["--image-size 'wide' is no height and width", "192x256"]),
    "size of text": (texts, ("profile", "bert", "--image-size", "8x8"), 2, ["bert takes text"]),
    "ids": (nothing, (*EVAL, "--ignore-index", "void"), 2, ["--ignore-index 'void' is not a whole number"]),
    "negative id": (nothing, (*EVAL, "--ignore-index=-1"), 2, ["--ignore-index is -1"]),
    "pictures of classes": (
        classifier,
        ("eval", "vit", "--task", "imagefolder", "--data", "streets/train", *QUIET, "--pictures", "drawn"),
        2,
        ["--pictures draws segmented images, but vit"],
    ),
    "pictures exist": (
        lambda work: (work / "shown").mkdir(),
        (*EVAL, "--pictures", "shown"),
        1,
        ["shown already exists", "--force"],
    ),
    "pictures over the data": (nothing, (*EVAL, "--pictures", "streets"), 1, ["is the input streets", "destroy"]),
}


@pytest.mark.parametrize(("spoil", "args", "code", "words"), BAD.values(), ids=list(BAD))
def test_bad_input_is_refused_with_one_message(work, spoil, args, code, words):
    spoil(work)
    refused(work, args, code, words)


def test_a_process_prints_nothing_but_the_message(work):
    unknown_ids(work)
    before = tree(work)
    result = run_cli(*EVAL, cwd=work)
    assert result.returncode == 1 and result.stdout == "" and tree(work) == before
    assert result.stderr.count("error: ") == 1 and "Traceback" not in result.stderr and "Warning" not in result.stderr


# Real data


@pytest.mark.shared
@pytest.mark.skipif(not (M2F.exists() and CAMVID.exists()), reason="needs ../shared")
def test_a_trained_mask2former_on_a_few_streets(here):
    done("eval", M2F, "--task", "camvid", "--data", CAMVID, "--samples", "4", *QUIET, "--device", "cpu", "-o", "e.json")
    found = json.loads(Path("e.json").read_text())
    assert found["split"] == "validation" and found["options"]["ignore_index"] == [11, 255]
    assert 0.5 < found["metric"]["value"] < 0.7 and 0.85 < found["metrics"]["pixel_accuracy"] < 0.95
    assert found["class_iou"]["road"] > 0.9 and found["class_iou"]["pole"] < 0.3
