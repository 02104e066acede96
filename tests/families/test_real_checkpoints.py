"""The whole pipeline on a real fine-tuned model and real data, where they lie beside the repository."""

import pytest
import torch
from helpers.paths import SHARED

import optin_cli
from optin_cli.options.evaluation import EvalOptions
from optin_cli.options.refit import RefitOptions
from optin_cli.options.scoring import ScoreOptions
from optin_cli.searching.limits import Limits

CHECKPOINT, DATA = SHARED / "checkpoints" / "minilm-sst2", SHARED / "data" / "sst2"

pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(not CHECKPOINT.is_dir() or not DATA.is_dir(), reason="needs the shared checkpoints and data"),
]


def test_half_the_macs_cost_little_accuracy(tmp_path):
    """Bounds are wide (three standard errors of 600 sentences): this guards against breakage, not against noise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
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
    finally:
        torch.set_num_threads(threads)
    assert 0.495 < manifest.after.macs / manifest.before.macs <= 0.5
    assert manifest.certificate.reloaded <= manifest.certificate.tolerance
    assert result.against.drop < 0.04
    assert result.against.agreement > 0.9
