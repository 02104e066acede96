"""What one pass through a block spares the next is what it would have computed."""

import copy

import pytest
import torch
from helpers.models import batch_of, build, random_kept, structure_of

from optin_cli.model.cut import PrunedModel, cut
from optin_cli.model.replay import Prefixes, is_chain
from optin_cli.refit import refit, residual_stream, sparing

CHAINS = ["llama", "gpt2", "gpt-neox", "gpt-neox-serial", "opt", "qwen3-moe", "gemma2", "olmo2", "bert", "distilbert"]


def refitted(family, batches, watch=lambda _model, _structure: None):
    """State dict and report of a refit after half of the units went."""
    original = build(family)
    structure = structure_of(original)
    kept = random_kept(structure)
    model = copy.deepcopy(original)
    cut(model, structure, kept)
    watch(model, structure)
    report = refit.refit_model(PrunedModel(original, model, structure, kept), batches)
    return model.state_dict(), report


@pytest.mark.parametrize("family", CHAINS)
def test_refit_is_the_same_as_with_whole_passes(family, monkeypatch):
    batches = [batch_of(8, seed=seed) for seed in range(2)]
    model = build(family)
    assert is_chain(model, structure_of(model), batches[0])
    spared, report = refitted(family, batches)
    monkeypatch.setattr(residual_stream, "is_chain", lambda *_: False)
    whole, expected = refitted(family, batches)
    assert report.keys() == expected.keys()
    for name, entry in report.items():
        assert entry.after == pytest.approx(expected[name].after, rel=1e-3, abs=1e-6)
    for name, tensor in spared.items():
        torch.testing.assert_close(tensor, whole[name], rtol=1e-3, atol=1e-4)


def test_batches_for_which_there_is_no_room_are_computed_again(monkeypatch):
    batches = [batch_of(8, seed=seed) for seed in range(2)]
    expected, _ = refitted("llama", batches)
    monkeypatch.setattr(sparing, "MOST", 20_000)
    found, _ = refitted("llama", batches)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-5)


def test_attention_runs_once_a_block_and_batch_and_no_block_runs_again(monkeypatch):
    batches = [batch_of(8, seed=seed) for seed in range(2)]
    runs, whole = [], []

    def watch(model, structure):
        blocks = dict.fromkeys(block.path for block in structure.blocks)
        for path in blocks:
            query = model.get_submodule(f"{path}.self_attn.q_proj")
            query.register_forward_hook(lambda *_, path=path: runs.append(path))

    run = Prefixes._run

    def running(self, number, batch, depth):
        whole.append(depth)
        return run(self, number, batch, depth)

    refitted("llama", batches, lambda *_: runs.clear())
    monkeypatch.setattr(Prefixes, "_run", running)
    monkeypatch.setattr(residual_stream, "is_chain", lambda *_: True)
    refitted("llama", batches, watch)
    first = runs[0]
    assert runs.count(first) == 1 + len(batches)  # once to see the order of blocks
    assert whole == []


def test_a_block_that_reads_an_earlier_one_makes_no_chain():
    model = build("llama")
    structure = structure_of(model)
    blocks = [model.get_submodule(block.path) for block in structure.blocks]
    assert len(blocks) > 2
    held = []
    blocks[0].register_forward_hook(lambda _module, _inputs, output: held.append(output))
    blocks[2].register_forward_pre_hook(lambda _module, inputs: (inputs[0] + held[-1], *inputs[1:]))
    assert not is_chain(model, structure, batch_of(2))


def test_a_block_that_runs_again_makes_no_chain():
    model = build("albert")
    assert not is_chain(model, structure_of(model), batch_of(2))
