"""Streamed models compute what they compute in memory, with one block open at a time."""

import pytest
import torch
from helpers.models import save_checkpoint

from optin_cli.checkpoints.checkpoint import load
from optin_cli.checkpoints.pages import paging


@pytest.mark.parametrize(("family", "head"), [("llama", "next"), ("bert", "classes"), ("modernbert", "base")])
@torch.no_grad()
def test_any_pass_opens_the_blocks_it_runs(family, head, tmp_path):
    folder = save_checkpoint(tmp_path / family, family, head)
    whole, checkpoint = (load(folder, stream=stream) for stream in (False, True))
    model, streaming = checkpoint.model, checkpoint.streaming
    held = {path: model.get_submodule(path).__dict__.get("forward") for path in streaming.blocks}
    open_at_once = []

    def count(*_):
        blocks = (model.get_submodule(path) for path in streaming.blocks)
        open_at_once.append(sum(not next(block.parameters()).is_meta for block in blocks))

    inputs = checkpoint.input.probe(None)
    with paging(streaming):
        for path in streaming.blocks:
            model.get_submodule(path).register_forward_hook(count)
        found, expected = model(**inputs), whole.model(**inputs)
    assert open_at_once == [1] * len(streaming.blocks)
    assert all(torch.equal(found[name], expected[name]) for name in ("logits", "last_hidden_state") if name in expected)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert {path: model.get_submodule(path).__dict__.get("forward") for path in streaming.blocks} == held


def test_a_block_that_is_kept_stays_open(tmp_path):
    streaming = load(save_checkpoint(tmp_path / "bert"), stream=True).streaming
    first, second, third = streaming.blocks

    def opened():
        blocks = {path: streaming.model.get_submodule(path) for path in streaming.blocks}
        return [path for path, block in blocks.items() if not next(block.parameters()).is_meta]

    with paging(streaming) as pages:
        pages.keep(first)
        pages.open(second)
        pages.open(third)
        assert opened() == [first, third]
        pages.keep(second)
        assert opened() == [first, second]
        pages.close(first)
        assert opened() == [second]
    assert opened() == []
