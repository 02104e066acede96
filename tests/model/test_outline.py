"""Blocks that run one at a time give what the whole model gives, and models whose blocks are no chain are refused."""

import pytest
import torch
from helpers.models import build, make_batch, structure_of

from optin_cli.errors import ArchitectureError
from optin_cli.model.forward import call_model, recording
from optin_cli.model.outline import find_outline

CHAINS = [
    ("llama", "next"),
    ("qwen3", "next"),
    ("gemma2", "next"),
    ("gpt2", "next"),
    ("gpt-neox", "next"),
    ("opt", "next"),
    ("bert", "classes"),
    ("roberta", "tokens"),
    ("distilbert", "answers"),
    ("modernbert", "masked"),
    ("mpnet", "base"),
]


@pytest.mark.parametrize(("family", "head"), CHAINS)
def test_blocks_one_at_a_time_are_the_whole_model(family, head):
    model = build(family, head)
    model.config.use_cache = False
    structure, batch = structure_of(model, head), make_batch(rows=3)
    with torch.no_grad(), recording(model, structure, batch.size) as features:
        expected = call_model(model, batch.inputs)
    outline = find_outline(model, structure, batch.inputs)
    hidden, calls = outline.calls(batch.inputs)
    with torch.no_grad():
        for block, call, feature in zip(structure.blocks, calls, features, strict=True):
            hidden = call(model.get_submodule(block.path), hidden)
            assert torch.equal(hidden, feature)
        with outline.ending_in(hidden):
            found = call_model(model, batch.inputs)
        again = call_model(model, batch.inputs)
    for name in expected:
        assert torch.equal(found[name], expected[name]) and torch.equal(again[name], expected[name])


@pytest.mark.parametrize(
    ("family", "head", "words"),
    [
        ("albert", "classes", "runs in place 2 of 1"),
        ("qwen3-moe", "next", "does not run without its weights"),
    ],
)
def test_models_whose_blocks_are_no_chain_are_refused(family, head, words):
    model = build(family, head)
    model.config.use_cache = False
    structure = structure_of(model, head)
    with pytest.raises(ArchitectureError, match=f"cannot be streamed: .*{words}"):
        find_outline(model, structure, make_batch().inputs)


def test_blocks_that_are_given_a_cache_are_refused():
    model = build("llama", "next")
    with pytest.raises(ArchitectureError, match="is given a DynamicCache"):
        find_outline(model, structure_of(model, "next"), make_batch().inputs)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda hidden: hidden * 2, "is not given what the block before puts out"),
        (lambda hidden: hidden[:, :1], "another shape"),
    ],
)
def test_hidden_states_that_change_between_blocks_are_refused(change, words):
    model = build("bert")
    structure, block = structure_of(model), model.bert.encoder.layer[1]
    if "shape" in words:
        block.register_forward_hook(lambda _module, _args, output: change(output))
    else:
        block.register_forward_pre_hook(lambda _module, args: (change(args[0]), *args[1:]))
    with pytest.raises(ArchitectureError, match=words):
        find_outline(model, structure, make_batch().inputs)
