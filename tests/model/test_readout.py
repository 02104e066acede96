"""Logits of some tokens at a time are those of the whole model."""

import pytest
import torch
from helpers.models import DECODERS, build, make_batch, structure_of

from optin_cli.model import readout
from optin_cli.model.readout import read_out, reads_tokens, run_hidden


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("most", [1, 99 * 3, 2**24])
def test_parts_are_the_whole(monkeypatch, family, most):
    """Soft caps and scales behind the last linear layer included."""
    monkeypatch.setattr(readout, "MOST", most)
    model, batch = build(family, "next"), make_batch()
    structure = structure_of(model, "next")
    found = read_out(model, structure, batch)
    parts = list(found.parts(batch.token_mask))
    assert {len(part) for part in parts[:-1]} <= {max(1, most // 99)}
    expected = model(**batch.inputs)["logits"]
    torch.testing.assert_close(torch.cat(parts), expected[batch.token_mask])
    assert "forward" not in model.get_submodule(structure.root).__dict__
    torch.testing.assert_close(model(**batch.inputs)["logits"], expected)


def test_only_heads_of_single_tokens_are_read_so():
    assert not reads_tokens(structure_of(build("bert")))
    assert not reads_tokens(structure_of(build("llama", "base"), "base"))


def test_the_head_is_left_out_where_hooks_alone_are_asked_for():
    seen = []
    for family, head in (("llama", "next"), ("bert", "classes")):
        model = build(family, head)
        last = model.lm_head if head == "next" else model.classifier
        with torch.no_grad():
            handle = last.register_forward_hook(lambda *_: seen.append(1))
            run_hidden(model, structure_of(model, head), make_batch().inputs)
            handle.remove()
    assert len(seen) == 1
