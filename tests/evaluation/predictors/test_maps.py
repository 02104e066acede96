"""Semantic segmentation: predictions at the label map's size by the processors' own rules, and what they are worth."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from helpers.scenes import IGNORED, NAMES, PROCESSORS, save_segmenter, scene, scene_folder
from PIL import Image

import optin_cli
from optin_cli.checkpoints.checkpoint import load
from optin_cli.data.spec import DataSpec
from optin_cli.errors import DataError, UsageError
from optin_cli.evaluation.predict import Trial
from optin_cli.evaluation.predictors.registry import run_trial
from optin_cli.options.evaluation import EvalOptions
from optin_cli.tasks.registry import load_task

TASK = load_task("semantic-segmentation")
OPTIONS = EvalOptions(latency_runs=0, batch_size=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three scenes and a tiny model of every family. To be read only."""
    root = tmp_path_factory.mktemp("segmentation")
    scene_folder(root / "streets", 3)
    for number, family in enumerate(PROCESSORS):
        save_segmenter(root / family, family, seed=number)
    return root


def seed_of(name):
    return int(name.rpartition("/")[2].partition(".")[0])


def by_hand(folder, samples):
    """What transformers makes of the images, in the samples' order."""
    kind = load(folder).blueprint.prototype
    model = kind.from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    found = []
    for picture in samples.images:
        image = Image.fromarray(scene(seed_of(picture.name))[0])
        with torch.no_grad():
            outputs = model(**processor(images=image, return_tensors="pt"))
        found += processor.post_process_semantic_segmentation(outputs, target_sizes=[image.size[::-1]])
    return torch.stack(found)


@pytest.mark.parametrize("family", PROCESSORS)
def test_predictions_are_those_of_the_processor(folder, family):
    checkpoint = load(folder / family)
    assert checkpoint.input.class_names == NAMES
    samples = checkpoint.input.load_samples(DataSpec(path=folder / "streets", role="evaluation", known=TASK))
    prediction = run_trial(Trial(checkpoint, samples, TASK, OPTIONS))
    wanted = by_hand(folder / family, samples)
    for held, expected in zip(prediction.maps, wanted, strict=True):
        assert (torch.from_numpy(held.classes().astype(int)) == expected).float().mean() > 0.999, "but for rounding"
    labels = np.stack([scene(seed_of(picture.name))[1] for picture in samples.images])
    predicted = np.stack([held.classes() for held in prediction.maps])
    right = (predicted == labels)[labels != IGNORED]
    assert prediction.values["pixel_accuracy"] == pytest.approx(right.mean())
    for number, name in enumerate(NAMES):
        mine, theirs = (predicted == number) & (labels != IGNORED), labels == number
        either = (mine | theirs).sum()
        assert prediction.class_iou[name] == pytest.approx((mine & theirs).sum() / either)
    assert prediction.values["mean_iou"] == pytest.approx(np.mean([*prediction.class_iou.values()]))
    assert prediction.constants["ignore_index"] == [IGNORED] and prediction.constants["resamples"] == 200


def test_an_evaluation_says_all_of_both_models(folder):
    result = optin_cli.evaluate(
        folder / "mask2former",
        "semantic-segmentation",
        folder / "streets",
        against=folder / "maskformer",
        options=OPTIONS,
    )
    other = result.against
    assert list(result.metrics) == ["mean_iou", "pixel_accuracy"] == list(other.metrics)
    assert result.metric.value == result.metrics["mean_iou"] and 0 < result.standard_error < 1
    assert other.drop == pytest.approx(other.metrics["mean_iou"] - result.metrics["mean_iou"])
    assert list(result.class_iou) == [*NAMES] == list(other.class_iou)
    assert 0 <= other.agreement < 1 and other.kl is None
    same = optin_cli.evaluate(
        folder / "segformer", data=folder / "streets", against=folder / "segformer", options=OPTIONS
    )
    assert same.against.agreement == 1 and same.against.drop == 0
    assert (same.task, list(same.metrics)) == ("semantic-segmentation", list(result.metrics))


def test_images_alone_can_be_compared(folder):
    samples = folder / "streets" / "images"
    found = optin_cli.evaluate(folder / "segformer", data=samples, against=folder / "mask2former", options=OPTIONS)
    assert 0 <= found.against.agreement <= 1 and found.samples == 3


def test_a_named_ignore_index_is_used(folder):
    options = replace(OPTIONS, ignore_index=(0, IGNORED))
    found = optin_cli.evaluate(folder / "segformer", "semantic-segmentation", folder / "streets", options=options)
    assert found.options["ignore_index"] == [0, IGNORED] and found.class_iou["brick"] in (0, None)


@pytest.mark.parametrize("key", ["do_reduce_labels", "reduce_labels"])
def test_labels_are_reduced_where_the_processor_says_so(folder, tmp_path, key):
    save_segmenter(tmp_path / "model", processor={"do_reduce_labels": key.startswith("do")}, seed=2)
    file = tmp_path / "model" / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: True}))
    ids = np.array([1, 2, 3, *[0] * 253], np.uint8)
    scene_folder(tmp_path / "reduced", 3, ids=ids)
    reduced = optin_cli.evaluate(tmp_path / "model", "semantic-segmentation", tmp_path / "reduced", options=OPTIONS)
    plain = optin_cli.evaluate(folder / "segformer", "semantic-segmentation", folder / "streets", options=OPTIONS)
    assert reduced.options["reduce_labels"] is True and plain.options["reduce_labels"] is False
    assert reduced.metrics == plain.metrics and reduced.class_iou == plain.class_iou


def test_images_of_several_sizes(folder, tmp_path):
    """Fine where the processor makes one size of them; refused in one batch where it keeps their shape."""
    scene_folder(tmp_path / "mixed", 2)
    scene_folder(tmp_path / "mixed", 2, first=2, width=60)
    result = optin_cli.evaluate(folder / "segformer", "semantic-segmentation", tmp_path / "mixed", options=OPTIONS)
    assert result.samples == 4
    save_segmenter(tmp_path / "free", "mask2former", processor={"size": {"shortest_edge": 32, "longest_edge": 96}})
    with pytest.raises(DataError, match=r"in different sizes: images/.* a batch needs one") as caught:
        optin_cli.evaluate(
            tmp_path / "free", "semantic-segmentation", tmp_path / "mixed", options=replace(OPTIONS, batch_size=4)
        )
    assert "--batch-size 1" in caught.value.hint and "--image-size" in caught.value.hint
    alone = replace(OPTIONS, batch_size=1)
    assert (
        optin_cli.evaluate(tmp_path / "free", "semantic-segmentation", tmp_path / "mixed", options=alone).samples == 4
    )
    wide = load(tmp_path / "free", image_size=(64, 32))
    assert optin_cli.evaluate(wide, "semantic-segmentation", tmp_path / "mixed", options=OPTIONS).samples == 4


def test_another_image_size_is_worked_on(folder):
    checkpoint = load(folder / "mask2former", image_size=(64, 96))
    usual = load(folder / "mask2former")
    assert checkpoint.sha256 == usual.sha256
    assert checkpoint.input.preprocess()(Image.new("RGB", (30, 20))).shape == (3, 64, 96)
    result = optin_cli.evaluate(checkpoint, "semantic-segmentation", folder / "streets", options=OPTIONS)
    assert result.workload.image == (3, 64, 96) and result.workload.resized
    small = optin_cli.evaluate(usual, "semantic-segmentation", folder / "streets", options=OPTIONS)
    assert small.workload.resized is None and result.totals.macs > 2 * small.totals.macs
    assert load(folder / "mask2former", image_size=(32, 32)).blueprint.image == usual.blueprint.image


@pytest.mark.parametrize(
    ("family", "size", "words"),
    [
        ("mask2former", (40, 64), "makes images of 64 x 64 pixels when asked for 40 x 64"),
        ("bert", (8, 8), "takes text"),
    ],
)
def test_sizes_that_cannot_be_are_refused(folder, tmp_path, family, size, words):
    from helpers.models import save_checkpoint

    path = save_checkpoint(tmp_path / "bert") if family == "bert" else folder / family
    with pytest.raises(UsageError, match=words):
        load(path, image_size=size)


def test_outputs_that_are_no_numbers_are_refused(folder):
    checkpoint = load(folder / "segformer")
    next(p for p in checkpoint.model.decode_head.parameters()).fill_(torch.nan)
    with pytest.raises(DataError, match="NaN or infinity in logits"):
        optin_cli.evaluate(checkpoint, "semantic-segmentation", folder / "streets", options=OPTIONS)


def test_tasks_and_models_that_do_not_fit(folder, image_checkpoint):
    with pytest.raises(DataError, match="imagefolder is a classification task, but segformer is a Segformer"):
        optin_cli.evaluate(folder / "segformer", "imagefolder", folder / "streets", options=OPTIONS)
    with pytest.raises(DataError, match="camvid is a semantic-segmentation task, but vit is a ViT"):
        optin_cli.evaluate(image_checkpoint("vit"), "camvid", folder / "streets", options=OPTIONS)
    with pytest.raises(DataError, match="camvid has 11 classes, sky"):
        optin_cli.evaluate(folder / "segformer", "camvid", folder / "streets", options=OPTIONS)
