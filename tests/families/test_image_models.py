"""Every image family of both libraries: what a checkpoint says, and its pruned folders reopened."""

import json

import pytest
import torch
from helpers.masks import make_mask
from helpers.models import IMAGES, build, logits, random_kept, save_images, side_of
from PIL import Image

import optin_cli
from optin_cli.artifacts.base import parse
from optin_cli.artifacts.manifest import Manifest
from optin_cli.checkpoints.checkpoint import load as load_checkpoint
from optin_cli.errors import CheckpointError, UsageError
from optin_cli.model.masking import masked


@pytest.mark.parametrize("family", IMAGES)
def test_what_a_checkpoint_says(tmp_path, family):
    checkpoint = load_checkpoint(save_images(tmp_path / "tiny", family))
    assert checkpoint.blueprint.library == IMAGES[family][0]
    side = side_of(checkpoint.model)
    assert checkpoint.blueprint.image.shape == (3, side, side)
    assert (checkpoint.blueprint.num_labels, checkpoint.blueprint.plan) == (3, None)
    torch.testing.assert_close(logits(checkpoint.model), logits(build(family)))
    seen = checkpoint.input.preprocess()(Image.new("RGB", (40, 30), "red"))
    assert (tuple(seen.shape), seen.dtype) == ((3, side, side), torch.float32)
    with pytest.raises(CheckpointError, match="no tokenizer"):
        checkpoint.input.tokenizer()
    profile = optin_cli.profile(checkpoint)
    assert profile.workload.image == (3, side, side)
    assert json.loads(profile.dump())["workload"] == {"batch_size": 1, "image": [3, side, side]}
    with pytest.raises(UsageError, match="no sequence length"):
        optin_cli.profile(checkpoint, seq_len=12)


@pytest.mark.parametrize("family", IMAGES)
def test_pruned_folders_compute_what_the_masked_model_computes(tmp_path, family):
    """Certified in a fresh process, loaded by optin, cut again: always what the masked model computes."""
    checkpoint = load_checkpoint(save_images(tmp_path / "whole", family, dtype=torch.float16))
    kept = random_kept(checkpoint.structure, 1)
    for group in (checkpoint.structure.groups[0], checkpoint.structure.groups[-1]):
        kept[group.name] = list(range(group.least))
    manifest = optin_cli.prune(checkpoint, make_mask(checkpoint, kept), tmp_path / "small")
    assert parse(Manifest, (tmp_path / "small" / "optin.json").read_text(), "optin.json") == manifest
    assert manifest.certificate.reloaded <= manifest.certificate.tolerance
    small = load_checkpoint(tmp_path / "small")
    assert (small.dtype, small.blueprint.image, small.blueprint.num_labels) == (
        torch.float16,
        checkpoint.blueprint.image,
        3,
    )
    with masked(checkpoint.model, checkpoint.structure, kept):
        torch.testing.assert_close(logits(small.model), logits(checkpoint.model), rtol=1e-4, atol=1e-4)
    assert optin_cli.profile(small).totals == manifest.after
    again = random_kept(small.structure, 2)
    optin_cli.prune(small, make_mask(small, again), tmp_path / "smaller")
    with masked(small.model, small.structure, again):
        mine = logits(optin_cli.load(tmp_path / "smaller").model)
        torch.testing.assert_close(mine, logits(small.model), rtol=1e-4, atol=1e-4)
