"""The whole pipeline on real fine-tuned models and real data, where they lie beside the repository."""

import pytest
from helpers.paths import SHARED

import optin_cli
from optin_cli.data.spec import DataSpec
from optin_cli.options.evaluation import EvalOptions
from optin_cli.options.images import ImageOptions
from optin_cli.options.refit import RefitOptions
from optin_cli.options.scoring import ScoreOptions
from optin_cli.searching.limits import Limits

CHECKPOINT, DATA = SHARED / "checkpoints" / "minilm-sst2", SHARED / "data" / "sst2"
REAL, IMAGES = SHARED / "checkpoints" / "vit-s14-cifar10", SHARED / "data" / "cifar10"


@pytest.mark.shared
@pytest.mark.skipif(not CHECKPOINT.is_dir() or not DATA.is_dir(), reason="needs the shared checkpoints and data")
def test_half_the_macs_cost_little_accuracy(tmp_path):
    """Bounds are wide (three standard errors of 600 sentences): this guards against breakage, not against noise."""
    train = str(DATA / "train.jsonl")
    scores = optin_cli.score(CHECKPOINT, train, options=ScoreOptions(samples=96, probes=2))
    mask = optin_cli.search(scores, Limits(keep_macs=0.5))
    manifest = optin_cli.prune(CHECKPOINT, mask, tmp_path / "small", refit=train, options=RefitOptions(samples=96))
    result = optin_cli.evaluate(
        tmp_path / "small",
        "sst2",
        data=DATA / "test.jsonl",
        against=CHECKPOINT,
        options=EvalOptions(latency_runs=0, samples=600),
    )
    assert 0.495 < manifest.after.macs / manifest.before.macs <= 0.5
    assert manifest.certificate.reloaded <= manifest.certificate.tolerance
    assert result.against.drop < 0.04
    assert result.against.agreement > 0.9


@pytest.mark.shared
@pytest.mark.skipif(not REAL.is_dir() or not IMAGES.is_dir(), reason="needs the shared checkpoints and data")
def test_transfer_of_a_real_backbone(tmp_path):
    """A DINOv2 backbone fine-tuned on CIFAR-10. Bounds are wide: they guard against breakage, not against noise."""
    scores = optin_cli.score(REAL, DataSpec("cifar10", IMAGES), options=ScoreOptions(samples=32, probes=1))
    mask = optin_cli.search(scores, Limits(keep_macs=0.7))
    options = RefitOptions(samples=64)
    manifest = optin_cli.prune(REAL, mask, tmp_path / "small", refit=DataSpec("cifar10", IMAGES), options=options)
    result = optin_cli.evaluate(
        tmp_path / "small",
        "cifar10",
        DataSpec(path=IMAGES, images=ImageOptions(workers=2)),
        against=REAL,
        options=EvalOptions(latency_runs=0, samples=150),
    )
    assert 0.69 < manifest.after.macs / manifest.before.macs <= 0.7
    assert result.against.metric.value > 0.9
    assert result.against.drop < 0.1
