"""Forwards of attention that run with any number of heads compute what the libraries' own do."""

import copy

import pytest
import torch
from transformers.models.mask2former.modeling_mask2former import Mask2FormerAttention

from optin_cli.model.modeling_optin import apply_plan, attend_by_parts

NOTHING = {"root": "", "parameters": {}, "attributes": {}, "select": [], "empty": []}


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("mask", [None, "bool", "float", "heads", "padding"])
def test_attention_by_parts_is_torch_s(batch_first, mask):
    torch.manual_seed(0)
    stock = torch.nn.MultiheadAttention(16, 4, batch_first=batch_first).eval()
    parts = copy.deepcopy(stock)
    attend_by_parts(parts)
    seen = []
    parts.out_proj.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].shape))
    query, key, value = (torch.randn(2, n, 16) for n in (3, 5, 5))
    if not batch_first:
        query, key, value = (x.transpose(0, 1) for x in (query, key, value))
    masks = {
        "bool": {"attn_mask": torch.tensor([[False, True, False, True, False]] * 3)},
        "float": {"attn_mask": torch.randn(3, 5)},
        "heads": {"attn_mask": torch.rand(8, 3, 5) < 0.4},
        "padding": {"key_padding_mask": torch.tensor([[False] * 5, [False, False, True, True, True]])},
    }
    with torch.no_grad():
        for options in ({}, {"need_weights": False}, {"average_attn_weights": False}):
            arguments = {"query": query, "key": key, "value": value, **masks.get(mask, {}), **options}
            for mine, theirs in zip(parts(**arguments), stock(**arguments), strict=True):
                assert mine is theirs is None or torch.allclose(mine, theirs, atol=1e-6)
    assert seen == [(2, 3, 16)] * 3


@pytest.mark.parametrize("cross", [False, True])
def test_attention_of_queries_by_parts_is_the_library_s(cross):
    torch.manual_seed(0)
    stock = Mask2FormerAttention(16, 4).eval()
    parts = copy.deepcopy(stock)
    attend_by_parts(parts)
    shapes = {"hidden_states": (3, 2, 16), "position_embeddings": (3, 2, 16), "attention_mask": (8, 3, 3)}
    if cross:
        shapes |= {"key_value_states": (5, 2, 16), "key_value_position_embeddings": (5, 2, 16)}
        shapes["attention_mask"] = (8, 3, 5)
    arguments = {name: torch.randn(shape) for name, shape in shapes.items()}
    with torch.no_grad():
        for mine, theirs in zip(
            parts(**arguments, output_attentions=True), stock(**arguments, output_attentions=True), strict=True
        ):
            torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5)


def test_arguments_of_rows_times_units_keep_the_entries_of_kept_units():
    """Masks of attention that hold the units of one sample after another."""
    module = torch.nn.Identity()
    module.forward = lambda mask: mask
    rule = {"argument": "mask", "axis": 0, "per_row": True, "index": [0, 2], "of": 4}
    apply_plan(torch.nn.ModuleDict({"it": module}), {**NOTHING, "select": [rule | {"module": "it"}]})
    assert module(mask=torch.arange(8)).tolist() == [0, 2, 4, 6]
    assert module(mask=torch.arange(1)).tolist() == [0]
