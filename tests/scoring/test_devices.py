"""Scores on a GPU, in bfloat16, and in batches that fit."""

from dataclasses import replace

import pytest
import torch
from helpers.models import save_checkpoint, save_images, tiny_tokenizer
from helpers.running import write_rows
from scipy.stats import spearmanr

from optin_cli.checkpoints.batching import compute_type
from optin_cli.checkpoints.checkpoint import load
from optin_cli.data.spec import DataSpec
from optin_cli.errors import CheckpointError, UsageError
from optin_cli.options.scoring import CRITERIA, ScoreOptions
from optin_cli.scoring import fitting
from optin_cli.scoring.accumulate import Job
from optin_cli.scoring.calibration import calibrate
from optin_cli.scoring.fitting import fit_batches
from optin_cli.scoring.score import score

QUICK = {"samples": 16, "probes": 2, "batch_size": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("devices")
    save_checkpoint(root / "bert", num_labels=2)
    tiny_tokenizer().save_pretrained(root / "bert")
    save_images(root / "vit", "vit")
    rows = [
        {"sentence": f"{'a b c d ' * (1 + row % 5)}{'good' if row % 2 else 'bad'}", "label": row % 2}
        for row in range(16)
    ]
    write_rows(root / "texts.jsonl", rows)
    return root


def alike(found, other):
    """Rank correlation of importances, of the group in which it is least."""
    return min(spearmanr(found.importance[name], other.importance[name])[0] for name in found.importance)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("criterion", [name for name in CRITERIA if name != "random"])
def test_a_gpu_ranks_units_as_the_cpu_does(folder, criterion):
    options = ScoreOptions(criterion=criterion, **QUICK)
    found, other = (
        score(load(folder / "bert", device=device), folder / "texts.jsonl", options) for device in ("cuda", "cpu")
    )
    assert alike(found, other) >= 0.999


@pytest.mark.parametrize(
    "options",
    [{}, {"estimator": "hybrid"}, {"criterion": "wanda"}, {"criterion": "slimgpt"}, {"criterion": "fisher"}],
    ids=str,
)
def test_a_model_that_computes_in_bfloat16_is_scored_in_float32(folder, options):
    options = ScoreOptions(**QUICK, **options)
    found, other = (
        score(load(folder / "bert", dtype=dtype), folder / "texts.jsonl", options) for dtype in ("bfloat16", "float32")
    )
    assert found.header.options == {**other.header.options, "dtype": "bfloat16"}
    assert alike(found, other) > 0.8


def test_pixels_are_given_in_the_type_of_the_model(folder, pets):
    found, other = (
        score(load(folder / "vit", dtype=dtype), pets, ScoreOptions(**QUICK)) for dtype in ("bfloat16", "float32")
    )
    assert alike(found, other) > 0.8


@pytest.mark.parametrize(
    ("asked", "stored", "device", "computing"),
    [
        ("auto", torch.bfloat16, "cuda", torch.bfloat16),
        ("auto", torch.bfloat16, "cpu", torch.float32),
        ("auto", torch.float32, "cuda", torch.float32),
        ("auto", torch.float16, "cuda", torch.float32),
        ("bfloat16", torch.float32, "cpu", torch.bfloat16),
        ("float32", torch.bfloat16, "cuda", torch.float32),
    ],
)
def test_auto_is_bfloat16_where_weights_are_stored_so_on_a_gpu(asked, stored, device, computing):
    assert compute_type(asked, stored, torch.device(device)) == computing


def test_an_unknown_type_is_refused(folder):
    with pytest.raises(UsageError, match="'float16' is unknown"):
        load(folder / "bert", dtype="float16")


class Notes:
    def __init__(self):
        self.said = []

    def update(self, done, total, what):
        pass

    def note(self, text):
        self.said.append(text)


@pytest.mark.parametrize(("holds", "size"), [(8, 8), (7, 4), (2, 2), (1, 1)])
def test_batches_are_halved_until_the_largest_fits(folder, monkeypatch, holds, size):
    found, notes = fitted(folder, monkeypatch, holds)
    options, calibration = found
    assert options == ScoreOptions(**QUICK | {"batch_size": size})
    assert {batch.size for batch in calibration.batches} == {size}
    assert notes == ([] if size == 8 else [f"Batches of 8 do not fit into the memory of the device; {size} do."])


def test_a_device_that_holds_no_sample_is_named(folder, monkeypatch):
    with pytest.raises(CheckpointError, match="Not even one sample fits into the memory of cpu beside bert"):
        fitted(folder, monkeypatch, 0)


def fitted(folder, monkeypatch, holds):
    """What is found on a device that holds so many samples, and what is said."""
    checkpoint = load(folder / "bert")
    samples = checkpoint.input.load_samples(DataSpec(path=folder / "texts.jsonl").calibrating(16, 0))
    plan = fitting.plan_run

    def scarce(checkpoint, calibration, options, seq_len):
        def run(size):
            if size > holds:
                raise torch.OutOfMemoryError

        jobs = [Job("test", 1, lambda size=batch.size: run(size)) for batch in calibration.batches]
        return replace(plan(checkpoint, calibration, options, seq_len), jobs=jobs)

    monkeypatch.setattr(fitting, "plan_run", scarce)
    notes = Notes()

    def calibrated(options):
        return calibrate(checkpoint, samples, options, task=None, labelled=False)

    return fit_batches(checkpoint, ScoreOptions(**QUICK), calibrated, 16, notes), notes.said
