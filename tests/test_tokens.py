"""Merging of tokens: its laws, every family that can through the real pipeline, its costs, and what is refused."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import IMAGES, make_pixels, random_kept, save_images
from pictures import image_folder
from running import call, done, run_cli

import optin_cli
from optin_cli.artifacts import Budget, GroupMask, Mask
from optin_cli.checkpoint import load_checkpoint
from optin_cli.costs import count_macs
from optin_cli.data import Batch
from optin_cli.errors import ArchitectureError, ArtifactError
from optin_cli.masking import masked
from optin_cli.observe import observe
from optin_cli.options import RefitOptions, ScoreOptions
from optin_cli.refit import refit_model
from optin_cli.runtime import MERGED, merge_between, merge_tokens, merging_steps, pair_tokens, spread_tokens
from optin_cli.scoring.tokens import ladder, per_unit
from optin_cli.surgery import cut
from optin_cli.tokens import averaged_as, require_tokens

MERGING = [
    family for family in IMAGES if "vit" in family or "deit" in family or "dinov2" in family if "mobilevit" not in family
]
OTHERS = ["swin", "timm-swin", "beit", "timm-beit", "convnext", "mobilevit", "timm-resnet"]
QUICK = ScoreOptions(samples=8, probes=1, batch_size=4, exact_samples=4, rescore=(), units=("heads", "neurons", "tokens"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of images; to be read only."""
    folder = tmp_path_factory.mktemp("images") / "pets"
    image_folder(folder, 8)
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Checkpoints by family, each written once."""
    root = tmp_path_factory.mktemp("checkpoints")
    made = {}

    def load(family):
        if family not in made:
            made[family] = load_checkpoint(save_images(root / family, family))
        return made[family]

    return load


def tokens_kept(checkpoint, *counts):
    """A mask by which so many tokens merge behind the first blocks."""
    tokens = checkpoint.structure.tokens
    names = [f"{name}.token" for name, _ in tokens.blocks]
    return {name: list(range(count, tokens.units)) for name, count in zip(names, counts, strict=False)}


def logits(model, inputs):
    with torch.no_grad():
        found = model(**inputs)
    return found if isinstance(found, torch.Tensor) else found.logits


def merge(hidden, count, special, sizes=None):
    sizes = torch.ones(hidden.shape[:2]) if sizes is None else sizes
    place = pair_tokens(hidden, count, special)
    return (*merge_tokens(hidden, sizes, place, count), place)


# Laws of merging


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_laws(data):
    rows, special = data.draw(st.integers(1, 3)), data.draw(st.integers(0, 3))
    others = data.draw(st.integers(2, 12))
    count = data.draw(st.integers(0, others // 2))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    hidden = torch.randn(rows, special + others, 8, generator=generator)
    sizes = torch.randint(1, 5, hidden.shape[:2], generator=generator).float()
    merged, total, place = merge(hidden, count, special, sizes)
    assert merged.shape == (rows, special + others - count, 8) and total.shape == merged.shape[:2]
    torch.testing.assert_close(total.sum(1), sizes.sum(1))
    weighed = [(h * s[:, :, None]).sum(1) for h, s in ((hidden, sizes), (merged, total))]
    torch.testing.assert_close(*weighed, rtol=1e-4, atol=1e-4)
    assert torch.equal(merged[:, :special], hidden[:, :special]) and torch.equal(total[:, :special], sizes[:, :special])
    assert torch.equal(place, pair_tokens(hidden, count, special)), "the same twice"
    assert all(set(row.tolist()) == set(range(special + others - count)) for row in place)
    if not count:
        torch.testing.assert_close(merged, hidden)


def test_the_most_alike_merge():
    """Of a, b, A', B' where A' is nearly a: those two become their mean, and all others keep their order."""
    a, b, c, d = torch.eye(8)[:4]
    hidden = torch.stack([torch.ones(8), a, a * 0.9 + b * 0.1, c, d])[None]
    merged, sizes, _ = merge(hidden, 1, 1)
    assert sizes.tolist() == [[1, 2, 1, 1]]
    torch.testing.assert_close(merged[0], torch.stack([hidden[0, 0], (hidden[0, 1] + hidden[0, 2]) / 2, c, d]))


def test_duplicates_merge_into_themselves():
    """Attention over merged duplicates, weighed by size, is attention over all of them."""
    half = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(0))
    hidden = half.repeat_interleave(2, dim=1)
    merged, sizes, _ = merge(hidden, 4, 0)
    torch.testing.assert_close(merged, half)
    assert sizes.tolist() == [[2.0] * 4]
    attend = torch.nn.functional.scaled_dot_product_attention
    mine = attend(merged, merged, merged, attn_mask=sizes.log()[:, None, :])
    torch.testing.assert_close(mine, attend(hidden, hidden, hidden)[:, ::2])


def test_steps():
    assert merging_steps(0, 9) == [] and merging_steps(3, 9) == [3] and merging_steps(8, 9) == [4, 2, 1, 1]
    assert ladder(63) == [4, 8, 16, 32, 47, 63] and ladder(2) == [1, 2]


def test_importance_rises_and_keeps_its_sum():
    import numpy as np

    values = per_unit(np.array([1.0, 0.5, -1.0, 3.0, 2.0, 9.0]), 63)
    assert values.shape == (63,) and (np.diff(values) >= 0).all()
    assert values[0] == pytest.approx((1.0 * 4 + 0.5 * 4 + 0 * 8) / 16) and values[-1] == 9.0


# Models


@pytest.mark.parametrize("family", MERGING)
def test_every_family(saved, pictures, tmp_path, family):
    """Scored, searched, cut and certified: what is promised is measured, and the folder computes the same."""
    checkpoint = saved(family)
    tokens = require_tokens(checkpoint)
    scores = optin_cli.score(checkpoint, str(pictures), options=QUICK)
    named = {name for name, group in scores.header.groups.items() if group.kind == "token"}
    assert named == {"encoder.0.token", "encoder.1.token"} == set(tokens.groups)
    assert all((scores.importance[name] >= 0).all() for name in named)
    for share in (0.75, 0.5):
        mask = optin_cli.search(scores, keep_flops=share)
        assert mask.budget.reached["macs"] <= share
    merged = sum(group.units - len(group.kept) for name, group in mask.groups.items() if name in named)
    if not merged:  # a random model may lose least by width alone
        edited = {**mask.groups, "encoder.0.token": GroupMask(units=tokens.units, kept=[*range(4, tokens.units)])}
        mask = mask.model_copy(update={"groups": edited})
    manifest = optin_cli.prune(checkpoint, mask, tmp_path / "small")
    assert manifest.certificate.reloaded <= manifest.certificate.tolerance
    kept = {name: group.kept for name, group in mask.groups.items()}
    if merged:
        assert manifest.after.macs / manifest.before.macs == pytest.approx(mask.budget.reached["macs"], rel=1e-9)
    inputs = make_pixels(checkpoint.model, 3)
    with masked(checkpoint.model, checkpoint.structure, kept):
        expected = logits(checkpoint.model, inputs)
    small = load_checkpoint(tmp_path / "small")
    torch.testing.assert_close(logits(small.model, inputs), expected, rtol=1e-4, atol=1e-4)
    assert optin_cli.profile(small).totals == manifest.after
    assert not torch.allclose(logits(checkpoint.model, inputs), expected, rtol=1e-3)
    with pytest.raises(ArchitectureError, match="merge already"):
        require_tokens(small)


@pytest.mark.parametrize(("family", "special"), [("timm-dinov2", 5), ("deit", 2), ("timm-deit", 2), ("vit", 1)])
def test_special_tokens(saved, family, special):
    assert saved(family).structure.tokens.special == special


@pytest.mark.parametrize("counts", [(0, 0), (3, 1), (8, 0), (0, 8), (5, 3)])
@pytest.mark.parametrize("family", ["timm-dinov2", "vit"])
def test_promised_costs_are_measured(saved, pictures, family, counts):
    from optin_cli.token_spending import reached

    checkpoint = saved(family)
    header = optin_cli.score(checkpoint, str(pictures), options=QUICK).header
    inputs = make_pixels(checkpoint.model, 1)
    for kept in ({}, random_kept(checkpoint.structure, 3), {"encoder.1.head": []}):
        kept = {**{g.name: list(range(g.units)) for g in checkpoint.structure.groups}, **kept}
        kept |= tokens_kept(checkpoint, *counts)
        model = copy.deepcopy(checkpoint.model)
        cut(model, checkpoint.structure, kept, checkpoint.root)
        promised = reached(kept, header.groups, header.totals, header.tokens)["macs"] * header.totals.macs
        assert count_macs(model, inputs)[0] == pytest.approx(promised, rel=1e-9)
