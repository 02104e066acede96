"""On a GPU every family goes from scores to a refitted, certified folder, twice with the same bytes."""

from dataclasses import replace

import pytest
import torch
from helpers.models import DECODERS, FAMILIES, IMAGES, save_checkpoint, save_images
from helpers.running import write_rows

import optin_cli
from optin_cli.checkpoints.checkpoint import load as load_checkpoint
from optin_cli.options.refit import RefitOptions
from optin_cli.options.scoring import ScoreOptions
from optin_cli.searching.limits import Limits

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

OPTIONS = ScoreOptions(samples=8, probes=1, batch_size=4)
REFIT = RefitOptions(samples=8, batch_size=4)
CASES = [
    *((family, "classes") for family in FAMILIES),
    *((family, "next") for family in DECODERS),
    *((family, "images") for family in IMAGES),
]


@pytest.fixture(scope="module")
def sentences(tmp_path_factory):
    rows = [{"text": " ".join("abcdefghijklmnopqrst"[n : n + 9])} for n in range(12)]
    return write_rows(tmp_path_factory.mktemp("sentences") / "texts.jsonl", rows)


def pruned(checkpoint, data, options, folder, length=None):
    """Scores, the manifest, and the bytes of the weights that are left."""
    scores = optin_cli.score(checkpoint, str(data), options=replace(options, max_length=length))
    share = 0.99 if length is None else 0.7  # little of the narrowest convolutional networks can go
    mask = optin_cli.search(scores, Limits(keep_macs=share))
    manifest = optin_cli.prune(checkpoint, mask, folder, refit=str(data), options=replace(REFIT, max_length=length))
    return scores, manifest, (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize(("family", "head"), CASES)
def test_every_family_is_pruned_twice_alike(tmp_path, sentences, pets, family, head):
    images = head == "images"
    folder, data, length = tmp_path / "whole", pets if images else sentences, None if images else 12
    _ = save_images(folder, family) if images else save_checkpoint(folder, family, head)
    checkpoint = load_checkpoint(folder, device="cuda")
    scores, manifest, weights = pruned(checkpoint, data, OPTIONS, tmp_path / "small", length)
    certificate = manifest.certificate
    assert certificate.masked <= certificate.tolerance and certificate.reloaded <= certificate.tolerance
    again = pruned(load_checkpoint(folder, device="cuda"), data, OPTIONS, tmp_path / "again", length)
    assert again[0].content() == scores.content()
    assert again[2] == weights


@pytest.mark.parametrize("family", ["vit", "timm-dinov2"])
def test_merged_tokens_are_scored_twice_alike(tmp_path, pets, family):
    checkpoint = load_checkpoint(save_images(tmp_path / "whole", family), device="cuda")
    options = replace(OPTIONS, units=("heads", "neurons", "tokens"))
    first, second = (pruned(checkpoint, pets, options, tmp_path / name) for name in ("one", "two"))
    assert first[0].content() == second[0].content()
    assert first[2] == second[2]
