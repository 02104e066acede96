"""Images through the command line: the whole pipeline, and bad input, each with one clear message."""

import io
import json
import shutil
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from helpers.models import save_images
from helpers.pictures import CLASSES, image_folder, pixels, png
from helpers.running import call, done, run_cli, tree
from PIL import Image
from timm.models import save_for_hf

import optin_cli
from optin_cli.artifacts.scores import read_scores
from optin_cli.checkpoints.batching import BatchOptions
from optin_cli.checkpoints.checkpoint import load as load_checkpoint
from optin_cli.data.images.batches import image_batches
from optin_cli.data.images.samples import load_image_samples
from optin_cli.data.spec import DataSpec
from optin_cli.options.evaluation import EvalOptions
from optin_cli.options.refit import RefitOptions
from optin_cli.options.scoring import ScoreOptions
from optin_cli.options.sweep import SweepOptions
from optin_cli.scoring.baselines import loss_gradients
from optin_cli.scoring.calibration import calibrate
from optin_cli.searching.limits import Limits

SIDE = 16
ARGUMENTS = {"img_size": SIDE, "patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 4, "mlp_ratio": 2.0}
DATA_CONFIG = {
    "input_size": (3, SIDE, SIDE),
    "crop_pct": 1.0,
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
}
SMALL = ("--samples", "12", "--batch-size", "6", "--probes", "1")
NEURONS = ("--units", "neurons")
NO_LATENCY = ("--latency-runs", "0")


def save(model, folder, **changes):
    config = {"model_args": ARGUMENTS | {"num_classes": 3}, "pretrained_cfg": DATA_CONFIG | changes}
    config["label_names"] = CLASSES
    save_for_hf(model, folder, model_config=config, safe_serialization=True)
    return folder


def train(folder, data, steps=40):
    """A ViT that was trained for a few steps on a tiny image set, as a folder of timm's."""
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", **ARGUMENTS, num_classes=3)
    save(model, folder)
    checkpoint = load_checkpoint(folder)
    samples = load_image_samples(DataSpec(path=data))
    batches = [
        *image_batches(samples, checkpoint.input.preprocess(), input_name="x", batch_size=24, labels=samples.labels)
    ]
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=3e-3, weight_decay=0.0)
    for step in range(steps):
        batch = batches[step % len(batches)]
        loss = torch.nn.functional.cross_entropy(model(**batch.inputs), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return save(model.eval(), folder)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A trained checkpoint vit/ and its images, pets/train/ and pets/validation/. To be read only."""
    root = tmp_path_factory.mktemp("images")
    image_folder(root / "pets" / "train", 32)
    image_folder(root / "pets" / "validation", 16, first=100)
    train(root / "vit", root / "pets")
    return root


@pytest.fixture
def work(trained, here):
    """An empty working directory with the images, to be spoiled, and the name of the checkpoint."""
    shutil.copytree(trained / "pets", here / "pets")
    shutil.copytree(trained / "vit", here / "vit")
    return here


# The pipeline


def test_a_model_pruned_on_its_own_images_stays_as_good(trained, tmp_path):
    """A model fine-tuned on a small set of images is pruned with that set's own images, and stays as good."""
    before = optin_cli.evaluate(
        trained / "vit", "imagefolder", data=trained / "pets", options=EvalOptions(latency_runs=0)
    )
    assert before.metric.name == "accuracy" and before.metric.value > 0.95, "or the training taught it nothing"
    assert "top5" not in before.metrics and before.samples == 48
    scores = optin_cli.score(trained / "vit", str(trained / "pets"), options=ScoreOptions(samples=48, batch_size=24))
    mask = optin_cli.search(scores, Limits(keep_macs=0.6))
    options = RefitOptions(samples=96)
    manifest = optin_cli.prune(trained / "vit", mask, tmp_path / "small", refit=str(trained / "pets"), options=options)
    assert manifest.after.macs / manifest.before.macs <= 0.6
    assert manifest.certificate.reloaded <= manifest.certificate.tolerance
    after = optin_cli.evaluate(
        tmp_path / "small",
        "imagefolder",
        data=trained / "pets",
        against=trained / "vit",
        options=EvalOptions(latency_runs=0),
    )
    assert after.against.drop <= 0.05 and after.against.agreement > 0.9


def test_every_command_takes_images(work):
    done("score", "vit", "--calib", "imagefolder", "--data", "pets", *SMALL)
    done("search", "vit.scores.safetensors", "--keep-flops", "0.7", "-o", "mask.json")
    done("prune", "vit", "--mask", "mask.json", "--calib", "pets/train", "--samples", "24", "-o", "small")
    result = done(
        "eval", "small", "--task", "imagefolder", "--data", "pets", "--against", "vit", "--latency-runs", "2", "--json"
    )
    found = json.loads(result.out)
    assert found["split"] == "validation" and found["samples"] == 48
    assert found["options"]["skipped_images"] == 0
    assert found["workload"]["image"] == [3, SIDE, SIDE]
    assert found["latency"]["image"] == [3, SIDE, SIDE] and found["against"]["latency_ratio"] > 0
    assert "16 x 16 pixels" in result.err


def test_a_sweep_of_images_measures_every_recipe(trained, tmp_path):
    result = optin_cli.sweep(
        trained / "vit",
        "imagefolder",
        "imagefolder",
        tmp_path / "sweep",
        SweepOptions(
            ("optin", "magnitude"),
            (0.7,),
            scoring=ScoreOptions(samples=24, probes=1),
            evaluation=EvalOptions(latency_runs=0),
        ),
        data=trained / "pets",
    )
    assert [point.recipe for point in result.points] == ["optin", "magnitude"]
    assert result.baseline.value > 0.95 and result.split == "validation"
    assert result.points[0].drop <= 0.1


def test_order_and_names_of_files_do_not_matter(trained, tmp_path):
    for number, path in enumerate(sorted((trained / "pets" / "train").rglob("*.png"), reverse=True)):
        target = tmp_path / "renamed" / path.parent.name / f"{number}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    options = ScoreOptions(samples=24, probes=1, batch_size=7)
    first, second = (
        optin_cli.score(trained / "vit", str(data), options=options)
        for data in (trained / "pets" / "train", tmp_path / "renamed")
    )
    for name, importance in first.importance.items():
        assert (importance == second.importance[name]).all()


@pytest.fixture
def decoded(monkeypatch):
    """Names of the images that are decoded, as they are."""
    module = sys.modules[image_batches.__module__]
    names, decode = [], module.decode_image
    monkeypatch.setattr(module, "decode_image", lambda content, name: names.append(name) or decode(content, name))
    return names


def test_evaluating_decodes_each_image_once(trained, decoded):
    """Each is decoded once, when the model takes it, whatever is measured."""
    optin_cli.evaluate(trained / "vit", "imagefolder", data=trained / "pets", options=EvalOptions(latency_runs=0))
    assert len(decoded) == len(set(decoded)) == 48


@pytest.mark.parametrize("exact_samples", [5, 24, 128])
@pytest.mark.parametrize("estimator", ["obs", "sketch", "hybrid"])
def test_scoring_decodes_each_image_once(trained, decoded, estimator, exact_samples):
    options = ScoreOptions(samples=24, probes=1, batch_size=7, estimator=estimator, exact_samples=exact_samples)
    optin_cli.score(trained / "vit", str(trained / "pets"), options=options)
    assert len(decoded) == len(set(decoded)) == 24


@pytest.mark.parametrize("labelled", [False, True])
def test_exact_batches_hold_what_decoding_them_would(trained, labelled):
    """Those of the first samples, sorted into batches of their own; equal images have the same keys as ever."""
    checkpoint = load_checkpoint(trained / "vit")
    samples = checkpoint.input.load_samples(DataSpec(path=trained / "pets", limit=24))
    twice = replace(
        samples,
        images=[*samples.images[:3], *samples.images],
        digests=[*samples.digests[:3], *samples.digests],
        labels=[2, 1, 0, *samples.labels],
    )
    options = ScoreOptions(batch_size=4, exact_samples=10)
    found = calibrate(checkpoint, twice, options, task=None, labelled=labelled)
    expected = [*checkpoint.input.batches(twice.head(10), BatchOptions(4, labelled=labelled))]
    assert [batch.keys for batch in found.exact_batches] == [batch.keys for batch in expected]
    for mine, theirs in zip(found.exact_batches, expected, strict=True):
        assert mine.rows == theirs.rows and torch.equal(mine.inputs["x"], theirs.inputs["x"])
        assert mine.labels is theirs.labels is None if not labelled else torch.equal(mine.labels, theirs.labels)
    again = calibrate(checkpoint, twice, options, task=None, labelled=True, decoded=found.batches)
    for mine, theirs in zip(
        again.batches, checkpoint.input.batches(twice, BatchOptions(4, labelled=True)), strict=True
    ):
        assert mine.keys == theirs.keys and torch.equal(mine.inputs["x"], theirs.inputs["x"])
        assert torch.equal(mine.labels, theirs.labels)


def test_a_sweep_decodes_its_calibration_images_once(trained, tmp_path, decoded):
    """Recipes with and without labels share them; evaluation takes other images, once for every model."""
    optin_cli.sweep(
        trained / "vit",
        "imagefolder",
        "imagefolder",
        tmp_path / "sweep",
        SweepOptions(
            ("wanda", "fisher"),
            (0.8,),
            scoring=ScoreOptions(samples=24, batch_size=8),
            evaluation=EvalOptions(latency_runs=0),
        ),
        data=trained / "pets",
    )
    counts = Counter(decoded)
    assert sorted(counts.values()) == [1] * 24 + [3] * 48


def test_flat_images_calibrate_and_compare(work):
    for number, path in enumerate(sorted((work / "pets" / "train").rglob("*.png"))):
        path.rename(work / "pets" / f"{number}.png")
    shutil.rmtree(work / "pets" / "train")
    shutil.rmtree(work / "pets" / "validation")
    done("score", "vit", "--calib", "pets", *SMALL)
    result = done("eval", "vit", "--data", "pets", "--against", "vit", *NO_LATENCY, "--json")
    assert json.loads(result.out)["against"]["agreement"] == 1.0


def test_hybrid_scores_models_and_units_without_heads(work):
    hybrid = ("--calib", "pets", "--estimator", "hybrid", "--exact-samples", "4", *SMALL)
    save_images(work / "resnet", "timm-resnet")
    done("score", "resnet", *hybrid, "-o", "r")
    done("score", "vit", *hybrid, *NEURONS, "-o", "v")
    for name, kind in (("r", "channel"), ("v", "neuron")):
        groups = read_scores(name).header.groups.values()
        assert {(group.kind, group.estimator) for group in groups} == {(kind, "sketch")}
    done("score", "resnet", *hybrid, "--exact-kinds", "channels", "-o", "c")
    assert {group.estimator for group in read_scores("c").header.groups.values()} == {"exact"}
    for args in (["resnet", *hybrid, "--exact-kinds", "heads"], ["vit", *hybrid, *NEURONS, "--exact-kinds", "head"]):
        result = call("score", *args, "-o", "x")
        assert result.code == 2 and "no units of kind 'head' to score exactly" in result.err
        assert "--exact-kinds" in result.err and not (work / "x").exists()


def test_the_paper_s_recipe_prunes_a_model_without_heads(trained, tmp_path):
    result = optin_cli.sweep(
        save_images(tmp_path / "resnet", "timm-resnet"),
        "imagefolder",
        str(trained / "pets"),
        tmp_path / "sweep",
        SweepOptions(
            ("optin-paper",),
            (0.8,),
            scoring=ScoreOptions(samples=12, probes=1, batch_size=6),
            evaluation=EvalOptions(latency_runs=0),
        ),
        data=trained / "pets",
    )
    assert result.points[0].macs_ratio <= 0.8


def test_fisher_takes_the_classes_of_folders(work):
    """Squared gradients of the loss of each image's folder, which those of another class would not give."""
    done("score", "vit", "--calib", "pets", "--criterion", "fisher", *SMALL, "-o", "f.safetensors")
    found = read_scores("f.safetensors").importance
    checkpoint = load_checkpoint("vit")
    samples = load_image_samples(DataSpec(path="pets", limit=12))
    batches = [*image_batches(samples, checkpoint.input.preprocess(), input_name="x", batch_size=6)]
    folders = [CLASSES.index(Path(image.name).parent.name) for image in samples.images]
    assert len(set(folders)) == len(CLASSES)

    def expected(shift):
        sums = dict.fromkeys(found, 0.0)
        for batch in batches:
            labels = torch.tensor([(folders[row] + shift) % len(CLASSES) for row in batch.rows])
            labelled = replace(batch, labels=labels)
            gradients = loss_gradients(checkpoint.model, checkpoint.structure, checkpoint.structure.groups, labelled)
            sums = {name: sums[name] + rows.square().sum(dim=0) for name, rows in gradients.items()}
        return {name: (total / len(folders)).float().numpy() for name, total in sums.items()}

    right, wrong = expected(0), expected(1)
    for name, importance in found.items():
        np.testing.assert_allclose(importance, right[name], rtol=1e-3)
        assert not np.allclose(importance, wrong[name], rtol=0.1)


# Bad input


def refused(folder, args, code, words, **options):
    """Run; check the status, the message, and that nothing was written."""
    before = tree(folder)
    result = call(*args, **options)
    assert result.code == code, result.err
    assert result.out == "" and result.err.count("error: ") == 1
    assert "Traceback" not in result.err and "defect of optin:" not in result.err, result.err
    missing = [word for word in words if word not in result.err]
    assert not missing, f"{missing} not in:\n{result.err}"
    assert tree(folder) == before


def broken(share):
    def spoil(folder):
        files = sorted((folder / "pets").rglob("*.png"))
        for path in files[:: round(1 / share)]:
            path.write_bytes(path.read_bytes()[:60])

    return spoil


def emptied(folder):
    shutil.rmtree(folder / "pets")
    (folder / "pets").mkdir()


def texts(folder):
    emptied(folder)
    (folder / "pets" / "train.jsonl").write_text('{"text": "a"}\n')


def fewer(folder):
    for split in ("train", "validation"):
        (folder / "pets" / split / "coral").rename(folder / "pets" / split / "cat")
        image_folder(folder / "pets" / split / "more", 2)
        for kind in CLASSES:
            (folder / "pets" / split / "more" / kind).rename(folder / "pets" / split / f"more-{kind}")
        (folder / "pets" / split / "more").rmdir()


def flat(folder):
    for path in sorted((folder / "pets" / "validation").rglob("*.png")):
        path.rename(folder / "pets" / "validation" / f"{path.parent.name}{path.name}")
    for kind in CLASSES:
        (folder / "pets" / "validation" / kind).rmdir()


def other_size(folder):
    path = save_images(folder / "sight", "vit") / "preprocessor_config.json"
    path.write_text(path.read_text().replace("24", "32"))


def nothing(folder):
    pass


EVAL = ("eval", "vit", "--task", "imagefolder", "--data", "pets", *NO_LATENCY)
SCORE = ("score", "vit", "--calib", "pets", *SMALL)
BAD = {
    "broken images": (broken(0.2), EVAL, 1, ["images of pets, more than the 5.0%", "amber/", "--max-unreadable"]),
    "broken calibration": (broken(0.2), SCORE, 1, ["images of pets, more than the 5.0%", "truncated"]),
    "empty folder": (emptied, EVAL, 1, ["pets holds no images", "found nothing", ".png"]),
    "no images": (texts, SCORE, 1, ["pets holds no images", "found 1 other files, such as train.jsonl"]),
    "missing folder": (nothing, ("score", "vit", "--calib", "cats"), 1, ["'cats' is neither", "imagefolder"]),
    "wrong class count": (fewer, EVAL, 1, ["pets has 6 classes", "amber, blue, cat", "the model has 3", "coral"]),
    "no labels": (flat, EVAL, 1, ["no labels to measure pets by", "--against"]),
    "a task on texts": (nothing, ("eval", "vit", "--task", "sst2"), 1, ["sst2 is a text task", "cifar10"]),
    "a task without data": (nothing, ("eval", "vit", "--task", "imagefolder"), 1, ["no data of its own", "--data"]),
    "image size": (
        other_size,
        ("eval", "sight", "--task", "imagefolder", "--data", "pets"),
        1,
        ["sight says that its images have 32 x 32 pixels", "refuses them", "24", "preprocessor_config.json"],
    ),
    "text columns": (nothing, (*EVAL, "--text-columns", "a"), 2, ["--text-columns", "takes images"]),
    "length": (nothing, (*EVAL, "--max-length", "9"), 2, ["--max-length counts tokens", "takes images"]),
    "tokens of MACs": (nothing, (*EVAL, "--seq-len", "9"), 2, ["no sequence length"]),
    "share": (nothing, (*EVAL, "--max-unreadable", "1.5"), 2, ["--max-unreadable is 1.5"]),
    "sweep on its own samples": (
        nothing,
        ("sweep", "vit", "--calib", "imagefolder", "--task", "imagefolder", "--data", "pets/train", "--keep-flops=0.7"),
        2,
        ["pets/train has no splits", "--calib"],
    ),
}


@pytest.mark.parametrize(("spoil", "args", "code", "words"), BAD.values(), ids=list(BAD))
def test_bad_input_is_refused_with_one_message(work, spoil, args, code, words):
    spoil(work)
    refused(work, args, code, words)


def test_a_few_broken_images_are_told_and_skipped(work):
    target = work / "pets" / "validation" / "blue" / "100.png"
    target.write_bytes(target.read_bytes()[:60])
    result = done(*EVAL, "--json")
    assert "Skipped 1 of 48 images of pets: blue/100.png (" in result.err
    found = json.loads(result.out)
    assert found["samples"] == 47 and found["options"]["skipped_images"] == 1


def test_many_are_skipped_where_that_is_allowed(work):
    broken(0.2)(work)
    result = done(*EVAL, "--max-unreadable", "0.5", "-o", "-")
    assert "Skipped " in result.err and " and 4 more" in result.err, result.err


def test_images_of_every_mode_are_evaluated(work):
    """Grayscale, transparent, palette, CMYK and 16-bit images go through to the end."""
    image = Image.fromarray(pixels("blue", 0))
    kinds = {"L": "png", "LA": "png", "RGBA": "png", "P": "gif", "CMYK": "jpg", "1": "png", "I;16": "png"}
    for mode, ending in kinds.items():
        converted = image.convert("L").convert("I").convert("I;16") if mode == "I;16" else image.convert(mode)
        stream = io.BytesIO()
        converted.save(stream, {"jpg": "JPEG"}.get(ending, ending))
        (work / "pets" / "validation" / "blue" / f"{mode.replace(';', '')}.{ending}").write_bytes(stream.getvalue())
    found = json.loads(done(*EVAL, "--json").out)
    assert found["samples"] == 48 + len(kinds) and found["options"]["skipped_images"] == 0


def test_a_process_prints_nothing_but_the_message(work):
    """In a process of its own: nothing but the message, neither warnings nor a traceback."""
    (work / "pets" / "validation" / "blue" / "large.png").write_bytes(
        png(pixels("blue", 0)).replace((16).to_bytes(4, "big") * 2, (20_000).to_bytes(4, "big") * 2, 1)
    )
    for path in sorted((work / "pets" / "validation" / "coral").iterdir()):
        path.write_bytes(b"")
    result = run_cli(*EVAL, cwd=work)
    assert result.returncode == 1 and result.stdout == ""
    assert "17 of 49 images of pets, more than the 5.0% that may be skipped: blue/large.png (" in result.stderr
    assert "the file is empty" in result.stderr and "and 12 more" in result.stderr
    assert "Warning" not in result.stderr and "Traceback" not in result.stderr
