"""Folders without whole blocks: their config says so, and they compute what the model computes that skips them."""

import json

import pytest
import torch
from helpers.masks import make_mask
from helpers.models import IMAGES, clone, make_inputs, make_pixels, save_checkpoint, save_images
from helpers.running import write_rows

import optin_cli
from optin_cli.checkpoints.checkpoint import load as load_checkpoint
from optin_cli.errors import ArtifactError
from optin_cli.model.forward import call_model
from optin_cli.model.masking import masked

TEXT = ["bert", "roberta", "electra", "distilbert", "llama", "qwen2"]
SIGHTED = ["vit", "deit", "timm-vit", "timm-deit", "timm-dinov2"]
COUNTS = ("num_hidden_layers", "n_layers", "depth")


def open_tiny(folder, family):
    if family in IMAGES:
        return load_checkpoint(save_images(folder, family))
    return load_checkpoint(save_checkpoint(folder, family, "next" if family in ("llama", "qwen2") else "classes"))


def outputs_of(model, kept=None, structure=None):
    takes_text = getattr(model, "main_input_name", None) == "input_ids"
    with torch.no_grad(), masked(model, structure, kept) if kept else torch.no_grad():
        return next(iter(call_model(model, make_inputs() if takes_text else make_pixels(model)).values()))


def stacked(checkpoint):
    """The list of a model's blocks."""
    return checkpoint.model.get_submodule(checkpoint.structure.blocks[0].path.rpartition(".")[0])


def without(checkpoint, *numbers):
    names = [block.name for block in checkpoint.structure.blocks]
    return {f"{names[number]}.block": [] for number in numbers}


@pytest.mark.parametrize("family", [*TEXT, *SIGHTED])
def test_a_ragged_folder_has_fewer_blocks(tmp_path, family):
    checkpoint = open_tiny(tmp_path / "whole", family)
    last = checkpoint.structure.blocks[2].name
    kept = {**without(checkpoint, 0), f"{last}.neuron": [0, 2, 5], f"{checkpoint.structure.blocks[0].name}.head": []}
    if (dims := f"{checkpoint.structure.blocks[0].name}.head-dim") in checkpoint.structure.units:
        kept[dims] = []
    mask = make_mask(checkpoint, kept)
    manifest = optin_cli.prune(checkpoint, mask, tmp_path / "small")
    assert manifest.certificate.reloaded <= manifest.certificate.tolerance
    config = json.loads((tmp_path / "small/config.json").read_text())
    stated = config.get("model_args", config)
    assert [stated[key] for key in COUNTS if key in stated] == [2]
    pruned = load_checkpoint(tmp_path / "small")
    assert len(stacked(pruned)) == 2 and len(stacked(checkpoint)) == 3
    expected = outputs_of(checkpoint.model, kept, checkpoint.structure)
    torch.testing.assert_close(outputs_of(pruned.model), expected, rtol=1e-4, atol=1e-4)
    shorter = clone(checkpoint.model)
    blocks = shorter.get_submodule(checkpoint.structure.blocks[0].path.rpartition(".")[0])
    del blocks[0]
    alone = outputs_of(checkpoint.model, without(checkpoint, 0), checkpoint.structure)
    torch.testing.assert_close(outputs_of(shorter), alone)
    assert optin_cli.profile(pruned).totals == manifest.after


@pytest.mark.parametrize("family", ["bert", "llama", "timm-vit"])
def test_a_uniform_folder_loads_by_the_library_alone(tmp_path, family):
    checkpoint = open_tiny(tmp_path / "whole", family)
    kept = without(checkpoint, 1)
    mask = make_mask(checkpoint, kept, options={"layout": "uniform"})
    manifest = optin_cli.prune(checkpoint, mask, tmp_path / "small")
    assert manifest.layout == "uniform" and manifest.certificate.loader.startswith("plain ")
    assert not (tmp_path / "small/modeling_optin.py").exists()
    expected = outputs_of(checkpoint.model, kept, checkpoint.structure)
    torch.testing.assert_close(outputs_of(load_checkpoint(tmp_path / "small").model), expected)


def test_a_decoder_without_blocks_generates_with_its_cache(tmp_path):
    import transformers

    checkpoint = open_tiny(tmp_path / "whole", "llama")
    optin_cli.prune(checkpoint, make_mask(checkpoint, without(checkpoint, 0)), tmp_path / "small")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "small", trust_remote_code=True).eval()
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == [0, 1]
    given = {name: tensor[:1] for name, tensor in make_inputs().items()}
    how = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    cached, bare = (model.generate(**given, **how, use_cache=use) for use in (True, False))
    assert cached.shape[1] == 18 and torch.equal(cached, bare)


def test_removing_blocks_twice_adds_up(tmp_path):
    bert = open_tiny(tmp_path / "whole", "bert")
    optin_cli.prune(bert, make_mask(bert, without(bert, 1) | {"encoder.2.head": [1]}), tmp_path / "once")
    first = load_checkpoint(tmp_path / "once")
    assert first.structure.units["encoder.1.head"] == 1, "the third block has become the second"
    optin_cli.prune(first, make_mask(first, without(first, 0)), tmp_path / "twice")
    both = without(bert, 0, 1) | {"encoder.2.head": [1]}
    expected = outputs_of(bert.model, both, bert.structure)
    torch.testing.assert_close(outputs_of(load_checkpoint(tmp_path / "twice").model), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_the_block_before_makes_up_for_those_that_go(tmp_path, family):
    texts = write_rows(tmp_path / "texts.jsonl", [{"text": f"{a} {b} good"} for a in "abcdefg" for b in "hijkl"])
    checkpoint = open_tiny(tmp_path / "whole", family)
    stack = checkpoint.structure.blocks[0].name.partition(".")[0]
    kept = without(checkpoint, 1, 2)
    manifest = optin_cli.prune(checkpoint, make_mask(checkpoint, kept), tmp_path / "small", refit=str(texts))
    refit = manifest.refit[f"{stack}.0.neuron"]
    assert refit.kept and refit.after < refit.before
    assert set(manifest.refit) == {f"{stack}.0.head", f"{stack}.0.neuron"}
    assert manifest.certificate.reloaded <= manifest.certificate.tolerance


def test_masks_that_cannot_be(tmp_path):
    bert = open_tiny(tmp_path / "whole", "bert")
    with pytest.raises(ArtifactError, match="keeps none of the 3 blocks"):
        optin_cli.prune(bert, make_mask(bert, without(bert, 0, 1, 2)), tmp_path / "small")
    vit = load_checkpoint(save_images(tmp_path / "vit", "vit"))
    mask = make_mask(vit, without(vit, 1), tokens=True)
    with pytest.raises(ArtifactError, match="cannot go together"):
        optin_cli.prune(vit, mask, tmp_path / "small")
