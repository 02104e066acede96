"""The same weights through transformers and through timm: the same scores, and so the same mask."""

import numpy as np
import pytest
import timm
import torch
import transformers
from helpers.models import build, save_images
from helpers.paths import SHARED
from helpers.pictures import image_folder
from PIL import Image
from timm.data import resolve_model_data_config

import optin_cli
from optin_cli.checkpoints.checkpoint import load as load_checkpoint
from optin_cli.model.forward import call_model
from optin_cli.options.scoring import ScoreOptions
from optin_cli.searching.limits import Limits

CHECKPOINT, DATA = SHARED / "checkpoints" / "vit-s14-cifar10", SHARED / "data" / "cifar10"
SIDE = 24
BLOCK = {
    "vit": {"norm1": "layernorm_before", "norm2": "layernorm_after", "blocks": "layers"},
    "dinov2": {"norm1": "norm1", "norm2": "norm2", "blocks": "encoder.layer"},
}


def converted(model, family, root):
    """The state of a timm VisionTransformer under the names of a transformers model of that family."""
    names, mine = BLOCK[family], model.state_dict()
    state = {
        f"{root}.embeddings.cls_token": mine["cls_token"],
        f"{root}.embeddings.position_embeddings": mine["pos_embed"],
        "classifier.weight": mine["head.weight"],
        "classifier.bias": mine["head.bias"],
    }
    for kind in ("weight", "bias"):
        state[f"{root}.embeddings.patch_embeddings.projection.{kind}"] = mine[f"patch_embed.proj.{kind}"]
        state[f"{root}.layernorm.{kind}"] = mine[f"norm.{kind}"]
        for number in range(len(model.blocks)):
            here, there = f"blocks.{number}", f"{root}.{names['blocks']}.{number}"
            for one, other in zip("qkv", mine[f"{here}.attn.qkv.{kind}"].chunk(3), strict=True):
                state[f"{there}.attention.{one}_proj.{kind}"] = other
            state[f"{there}.attention.o_proj.{kind}"] = mine[f"{here}.attn.proj.{kind}"]
            for layer in ("norm1", "norm2"):
                state[f"{there}.{names[layer]}.{kind}"] = mine[f"{here}.{layer}.{kind}"]
            for layer in ("mlp.fc1", "mlp.fc2"):
                state[f"{there}.{layer}.{kind}"] = mine[f"{here}.{layer}.{kind}"]
    if family == "dinov2":
        # timm's has no position for the class token, and classifies by that token alone.
        zeros, head = torch.zeros_like(mine["cls_token"]), mine["head.weight"]
        state[f"{root}.embeddings.position_embeddings"] = torch.cat([zeros, mine["pos_embed"]], dim=1)
        state[f"{root}.embeddings.register_tokens"] = mine["reg_token"]
        state[f"{root}.embeddings.mask_token"] = zeros[0]
        state["classifier.weight"] = torch.cat([head, torch.zeros_like(head)], dim=1)
        for number in range(len(model.blocks)):
            for scale in ("1", "2"):
                name = f"{root}.encoder.layer.{number}.layer_scale{scale}.lambda1"
                state[name] = mine[f"blocks.{number}.ls{scale}.gamma"]
    return state


def transformers_twin(model, family, side, folder):
    """Save a timm VisionTransformer as the model of transformers that computes the same."""
    block = model.blocks[0]
    width, hidden = block.mlp.fc1.in_features, block.mlp.fc1.out_features
    shared = {
        "hidden_size": width,
        "num_hidden_layers": len(model.blocks),
        "num_attention_heads": block.attn.num_heads,
        "image_size": side,
        "patch_size": model.patch_embed.patch_size[0],
        "layer_norm_eps": model.norm.eps,
        "num_labels": model.num_classes,
    }
    if family == "vit":
        twin = transformers.ViTForImageClassification(transformers.ViTConfig(intermediate_size=hidden, **shared))
    else:
        registers = {"num_register_tokens": model.reg_token.shape[1], "mlp_ratio": hidden // width}
        config = transformers.Dinov2WithRegistersConfig(**registers, **shared)
        twin = transformers.Dinov2WithRegistersForImageClassification(config)
    twin.load_state_dict(converted(model, family, twin.base_model_prefix))
    twin.save_pretrained(folder)
    size = {"height": side, "width": side}
    seen = resolve_model_data_config(model)
    processor = transformers.ViTImageProcessor(size=size, image_mean=seen["mean"], image_std=seen["std"])
    processor.save_pretrained(folder)
    return folder


def assert_same_pruning(one, other, images, options, keep):
    """Score both checkpoints on the same images, and search both scores for the same budget.

    Which unit goes first is up to rounding where fewer tokens than columns leave obs a choice; what it costs is not.
    """
    pixels = torch.randn(2, *one.blueprint.image.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        outputs = [call_model(c.model, {c.blueprint.image.input_name: pixels})["logits"] for c in (one, other)]
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)
    mine, theirs = (optin_cli.score(c, str(images), options=options) for c in (one, other))
    assert set(mine.importance) == set(theirs.importance)
    masks = [optin_cli.search(scores, Limits(keep_macs=keep)) for scores in (mine, theirs)]
    assert any(len(group.kept) < group.units for group in masks[0].groups.values())
    for name, values in mine.importance.items():
        if options.estimator == "obs":
            lost, again = (np.sort(scores).cumsum() for scores in (values, theirs.importance[name]))
            np.testing.assert_allclose(lost, again, rtol=0.1, atol=1e-3 * float(lost[-1]))
            counts = [len(mask.groups[name].kept) for mask in masks]
            assert abs(counts[0] - counts[1]) <= 0.02 * len(values), name
        else:
            np.testing.assert_allclose(values, theirs.importance[name], rtol=2e-3, atol=1e-5 * float(values.max()))
            assert masks[0].groups[name] == masks[1].groups[name]


@pytest.mark.parametrize(("family", "mine"), [("vit", "timm-vit"), ("dinov2", "timm-dinov2")])
def test_the_same_weights_get_the_same_mask(tmp_path, family, mine):
    image_folder(tmp_path / "images", 4, size=SIDE)
    overrides = {"mlp_ratio": 2}
    model = build(mine, **overrides)
    save_images(tmp_path / "timm", mine, **overrides)
    one = load_checkpoint(tmp_path / "timm")
    other = load_checkpoint(transformers_twin(model, family, SIDE, tmp_path / "transformers"))
    options = ScoreOptions(samples=12, probes=2, batch_size=6, estimator="hybrid", exact_samples=4)
    assert_same_pruning(one, other, tmp_path / "images", options, 0.7)


@pytest.mark.shared
@pytest.mark.skipif(not CHECKPOINT.is_dir() or not DATA.is_dir(), reason="needs the shared checkpoints and data")
@pytest.mark.parametrize("estimator", ["obs", "sketch"])
def test_the_same_trained_weights_get_the_same_mask(tmp_path, estimator):
    images = sorted((DATA / "train").glob("*/*.jpg"))[::32]  # more patches than neurons of a layer
    for path in images:
        target = tmp_path / "images" / path.parent.name / f"{path.stem}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).convert("RGB").resize((112, 112), Image.Resampling.BICUBIC).save(target)
    model = timm.create_model(f"local-dir:{CHECKPOINT}", pretrained=True).eval()
    other = load_checkpoint(transformers_twin(model, "dinov2", 112, tmp_path / "transformers"))
    options = ScoreOptions(samples=len(images), probes=1, batch_size=4, estimator=estimator)
    assert_same_pruning(load_checkpoint(CHECKPOINT), other, tmp_path / "images", options, 0.7)
