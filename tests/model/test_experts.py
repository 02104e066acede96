"""Mixtures of experts: opened modules compute what the library's own do, and masked experts are not there."""

import copy

import pytest
import torch
from helpers.models import build, logits, structure_of
from torch.testing import assert_close

from optin_cli.model.cut import cut
from optin_cli.model.experts import neuron_sizes, open_experts, open_router
from optin_cli.model.masking import masked


@pytest.fixture(params=[False, True], ids=["as they are", "normalised"])
def block(request):
    return build("qwen3-moe", "next", norm_topk_prob=request.param).model.layers[0].mlp


def hidden(width=32):
    return torch.randn(3, 5, width, generator=torch.Generator().manual_seed(1))


def test_opened_modules_compute_the_same(block):
    opened = copy.deepcopy(block)
    open_router(opened.gate)
    open_experts(opened.experts)
    for mine, theirs in zip(opened.gate(hidden()), block.gate(hidden()), strict=True):
        assert_close(mine, theirs)
    assert_close(opened(hidden()), block(hidden()))


def test_neurons_are_in_the_order_of_their_weights(block):
    open_experts(block.experts)
    sizes = neuron_sizes(block.experts.gate_up_proj, block.experts.down_proj)
    assert bool((sizes.diff(dim=1) <= 0).all())
    before = block.experts.gate_up_proj.clone()
    open_experts(block.experts)
    assert torch.equal(block.experts.gate_up_proj, before)


def test_the_size_of_a_neuron():
    gate_up = torch.tensor([[[3.0, 4.0], [0.0, 1.0], [1.0, 0.0], [0.0, 2.0]]])  # two neurons: gates, then ups
    down = torch.tensor([[[0.0, 3.0], [2.0, 4.0]]])
    assert neuron_sizes(gate_up, down).tolist() == [[5 * 1 * 2, 1 * 2 * 5]]


@pytest.mark.parametrize("normalised", [False, True])
def test_tokens_of_masked_experts_go_to_the_next_best(normalised):
    model = build("qwen3-moe", "next", norm_topk_prob=normalised)
    structure = structure_of(model, "next")
    kept = {"decoder.0.expert": [1, 4, 5], "decoder.2.expert": [0, 3]}
    with masked(model, structure, kept):
        expected = logits(model)
    cut(model, structure, kept)
    assert model.model.layers[0].mlp.experts.num_experts == 3
    assert_close(logits(model), expected)
