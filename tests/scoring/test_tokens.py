"""Importance of tokens: per unit, and models, units and criteria that have none."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.models import make_pixels
from helpers.running import Watch, call

import optin_cli
from optin_cli.artifacts.base import Workload
from optin_cli.artifacts.costs import merges_at
from optin_cli.data.batch import Batch
from optin_cli.errors import ArchitectureError, ArtifactError
from optin_cli.model.modeling_optin import (
    merging_steps,
)
from optin_cli.options.scoring import ScoreOptions
from optin_cli.scoring.accumulate import SavedState
from optin_cli.scoring.tokens import ladder, per_unit, score_tokens

OTHERS = ["swin", "timm-swin", "beit", "timm-beit", "convnext", "mobilevit", "timm-resnet"]

TOKENS_TOO = ScoreOptions(samples=8, probes=1, batch_size=4, exact_samples=4, units=("heads", "neurons", "tokens"))


def test_counts_of_merged_tokens_by_hand():
    assert merging_steps(0, 9) == [] and merging_steps(3, 9) == [3] and merging_steps(8, 9) == [4, 2, 1, 1]
    assert ladder(64) == [4, 8, 16, 32, 47, 63] and ladder(3) == [1, 2]
    assert merges_at([64, 48, 48, 1, 64], 64) == [0, 16, 12, 35, 0], "three quarters of 64, of 48, and one"


def test_importance_rises_and_keeps_its_sum():
    slopes, steps = np.array([1.0, 0.5, -1.0, 3.0, 2.0, 9.0]), ladder(64)
    values = per_unit(slopes, 64)
    assert values.shape == (64,) and (np.diff(values) >= 0).all()
    assert values[:63].sum() == pytest.approx((slopes.clip(0) * np.diff([0, *steps])).sum(), rel=1e-5)
    assert values[0] == pytest.approx((1.0 * 4 + 0.5 * 4 + 0 * 8) / 16) and values[-1] == values[-2]
    assert per_unit(np.arange(1.0, 7.0) ** 2, 64)[:4].sum() == pytest.approx(4.0), "what was measured"
    assert not per_unit(np.zeros(6), 64).any()


@pytest.mark.parametrize("changed", ["batches", "workload", "inputs", "options", "version"])
def test_a_state_is_taken_up_by_the_same_run_alone(image_checkpoint, pets, tmp_path, monkeypatch, changed):
    checkpoint = image_checkpoint("timm-vit")
    scores = optin_cli.score(checkpoint, str(pets), options=replace(TOKENS_TOO, units=("heads", "neurons")))
    one, other = (Batch(make_pixels(checkpoint.model, 2, seed=seed), None, ("a", "b")) for seed in (0, 1))
    state = tmp_path / "state.tokens"

    def score(head=scores.header, batch=one, resume=False, **rest):
        image_checkpoint = SavedState(state, resume)
        return score_tokens(
            replace(scores, header=head), checkpoint, [batch], TOKENS_TOO, state=image_checkpoint, **rest
        )

    def stop(done, _total, _what):
        if done > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(progress=Watch(stop))
    head = scores.header
    changes = {
        "batches": {"batch": other},
        "workload": {"head": head.model_copy(update={"workload": Workload(batch_size=2, image=(3, 24, 24))})},
        "inputs": {"head": head.model_copy(update={"inputs": {**head.inputs, "architecture": checkpoint.source}})},
        "options": {"head": head.model_copy(update={"options": {**head.options, "seed": 1}})},
    }
    with monkeypatch.context() as patch:
        if changed == "version":
            patch.setattr("optin_cli.scoring.accumulate.__version__", "0")
        with pytest.raises(ArtifactError, match="was left by a run with other options"):
            score(**changes.get(changed, {}), resume=True)
    assert score(resume=True).content() == score().content()


@pytest.mark.parametrize("family", OTHERS)
def test_models_whose_tokens_cannot_merge(image_checkpoint, pets, family):
    with pytest.raises(ArchitectureError, match=r"tokens of .* cannot be reduced: its family") as caught:
        optin_cli.score(image_checkpoint(family), str(pets), options=TOKENS_TOO)
    assert "ViT, DeiT and DINOv2" in caught.value.hint


@pytest.mark.parametrize(
    ("units", "code", "message"),
    [
        ("heads,tokns", 2, "Unknown --units 'tokns'"),
        ("tokens", 2, "Tokens alone"),
        ("heads,heads", 2, "not a list of different ones"),
        ("heads,channels", 2, "no units of kind 'channel'"),
    ],
)
def test_units_that_are_refused(image_checkpoint, pets, units, code, message):
    folder = image_checkpoint("timm-vit").blueprint.folder
    result = call("score", folder, "--calib", pets, "--samples", "8", "--units", units, "-o", "-")
    assert result.code == code and message in result.err


def test_criteria_that_cannot_judge_tokens(image_checkpoint):
    folder = image_checkpoint("timm-vit").blueprint.folder
    result = call("score", folder, "--criterion", "magnitude", "--units", "heads,tokens", "-o", "-")
    assert result.code == 2 and "tokens have none" in result.err


def test_models_of_text_have_no_tokens_to_merge(made, here):
    result = call("score", made.bert, "--calib", made.texts, "--units", "heads,tokens", "-o", "s")
    assert result.code == 1 and "it takes text" in result.err
