"""Pruned decoders in the terms of DeciLM: read back by those terms, by transformers, and by optin."""

import json
from pathlib import Path

import pytest
import torch
from helpers.masks import make_mask
from helpers.models import build, logits
from helpers.running import QUICK, done, write_rows
from helpers.tokenizers import make_byte_tokenizer

import optin_cli
from optin_cli.artifacts.base import parse
from optin_cli.artifacts.manifest import Manifest
from optin_cli.artifacts.mask import Mask
from optin_cli.checkpoints.checkpoint import load
from optin_cli.errors import ArtifactError
from optin_cli.searching.decilm import intermediate_size

DECI = {"layout": "deci"}


def save(folder, family="llama", **overrides):
    build(family, "next", **({"vocab_size": 340, "intermediate_size": 768} | overrides)).save_pretrained(folder)
    make_byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """A folder of layout deci, beside the mask that it was pruned by. To be read only."""
    folder = tmp_path_factory.mktemp("decilm")
    write_rows(folder / "texts.jsonl", [{"text": f"the history of the city {n} begins"} for n in range(12)])
    save(folder / "whole")
    done("score", folder / "whole", "--calib", folder / "texts.jsonl", *QUICK, "-o", folder / "scores")
    run = done("search", folder / "scores", "--keep-flops", "0.6", "--layout", "deci", "-o", folder / "mask.json")
    assert "widths of the layout deci lose" in run.err
    run = done("prune", folder / "whole", "--mask", folder / "mask.json", "--no-refit", "-o", folder / "small")
    assert "deci layout: loaded by AutoModelForCausalLM.from_pretrained(trust_remote_code=True)" in run.err
    return folder / "small"


def test_its_config_states_every_layer(pruned):
    from transformers import AutoConfig

    mask = parse(Mask, (pruned.parent / "mask.json").read_bytes(), "mask")
    config = AutoConfig.from_pretrained(pruned, trust_remote_code=True)
    assert (config.model_type, config.architectures) == ("nemotron-nas", ["DeciLMForCausalLM"])
    assert len(config.block_configs) == config.num_hidden_layers == 3
    for number, block in enumerate(config.block_configs):  # as model code reads them
        assert not block.attention.no_op and not block.ffn.no_op
        assert not hasattr(block.ffn, "intermediate_size")
        assert intermediate_size(block.ffn.ffn_mult, config.hidden_size) == len(mask.kept[f"decoder.{number}.neuron"])
        groups = config.num_attention_heads // block.attention.n_heads_in_group
        assert groups == len(mask.kept[f"decoder.{number}.head"]) == config.num_key_value_heads
    again = type(config)(**json.loads(config.to_json_string()))
    assert again.block_configs == config.block_configs


def test_weights_have_the_names_and_shapes_of_that_config(pruned):
    from safetensors.torch import load_file
    from transformers import AutoConfig

    config, state = AutoConfig.from_pretrained(pruned, trust_remote_code=True), load_file(pruned / "model.safetensors")
    for number, block in enumerate(config.block_configs):
        groups = config.num_attention_heads // block.attention.n_heads_in_group
        width = intermediate_size(block.ffn.ffn_mult, config.hidden_size)
        rows = {"self_attn.q_proj": config.num_attention_heads * config.head_dim} | dict.fromkeys(
            ("self_attn.k_proj", "self_attn.v_proj"), groups * config.head_dim
        )
        rows |= dict.fromkeys(("mlp.gate_proj", "mlp.up_proj"), width)
        for part, expected in rows.items():
            assert state[f"model.layers.{number}.{part}.weight"].shape == (expected, config.hidden_size)
        assert state[f"model.layers.{number}.mlp.down_proj.weight"].shape == (config.hidden_size, width)


def test_transformers_and_optin_load_the_same_model(pruned):
    from transformers import AutoModelForCausalLM

    found = AutoModelForCausalLM.from_pretrained(pruned, trust_remote_code=True).eval()
    assert type(found).__name__ == "DeciLMForCausalLM"
    checkpoint = load(pruned)
    assert checkpoint.blueprint.model_class == "LlamaForCausalLM"
    torch.testing.assert_close(logits(found), logits(checkpoint.model))
    manifest = parse(Manifest, (pruned / "optin.json").read_bytes(), "manifest")
    assert manifest.layout == "deci"
    assert "in the terms of DeciLM" in (pruned / "README.md").read_text()


def test_it_can_be_pruned_again_in_any_layout(pruned, tmp_path):
    checkpoint = load(pruned)
    mask = make_mask(checkpoint, {"decoder.1.neuron": range(7)})
    optin_cli.prune(checkpoint, mask, tmp_path / "ragged")
    config = json.loads((tmp_path / "ragged" / "config.json").read_text())
    assert config["model_type"] == "llama" and not config.keys() & {"block_configs", "optin_base"}
    optin_cli.prune(
        checkpoint, make_mask(checkpoint, {"decoder.0.neuron": range(256)}, options=DECI), tmp_path / "deci"
    )
    assert load(tmp_path / "deci").model.model.layers[0].mlp.up_proj.weight.shape[0] == 256


@pytest.mark.parametrize(
    ("family", "overrides", "kept", "words"),
    [
        ("llama", {}, {"decoder.1.neuron": range(300)}, "layer 1 has 300 neurons, not a multiple of 256"),
        ("llama", {}, {"decoder.1.neuron": ()}, "layer 1 has 0 neurons"),
        ("llama", {}, {"decoder.2.head": range(2)}, "layers have 4 and 8 query heads"),
        ("llama", {"attention_bias": True}, {}, "the config has attention_bias = True"),
        ("qwen2", {}, {}, "Qwen2ForCausalLM computes otherwise than DeciLMForCausalLM"),
    ],
)
def test_masks_that_it_cannot_state_are_refused(tmp_path, family, overrides, kept, words):
    checkpoint = load(save(tmp_path / "m", family, **overrides))
    with pytest.raises(ArtifactError, match=words):
        optin_cli.prune(checkpoint, make_mask(checkpoint, kept, options=DECI), tmp_path / "p")
    assert not Path(tmp_path / "p").exists()


def test_no_question_is_asked_about_its_code(pruned, monkeypatch):
    import transformers

    asked = []
    monkeypatch.setattr("builtins.input", lambda question="": asked.append(question) or "y")
    assert load(pruned).input.tokenizer()("the city")["input_ids"]
    card = (pruned / "README.md").read_text()
    line = next(line for line in card.splitlines() if line.startswith("tokenizer = "))
    exec(line, {"AutoTokenizer": transformers.AutoTokenizer, "folder": pruned})
    assert asked == []
