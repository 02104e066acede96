"""Timed generation: what runs, what the cache holds, and what ends a text."""

import pytest
import torch
from helpers.masks import make_mask
from helpers.models import save_checkpoint

import optin_cli
from optin_cli.checkpoints.inputs import random_inputs
from optin_cli.model.forward import hooks
from optin_cli.options.generation import GenerationOptions
from optin_cli.profiling.decoding import Marks, Timed, continuing, generate, measure_generation

OPTIONS = GenerationOptions(prompt_length=7, new_tokens=4, decode_warmup=1)


@pytest.fixture(scope="module")
def llamas(tmp_path_factory):
    """A model, and one cut from it whose layers keep 1, 2 and 4 of 4 KV groups."""
    root = tmp_path_factory.mktemp("llamas")
    original = optin_cli.load(save_checkpoint(root / "llama", "llama", "next"))
    kept = {"decoder.0.head": [2], "decoder.1.head": [0, 3], "decoder.1.neuron": []}
    optin_cli.prune(original, make_mask(original, kept), root / "pruned")
    return original, optin_cli.load(root / "pruned")


def prompts(llamas, *batches):
    inputs = [one.input for one in llamas]
    return {batch: random_inputs(inputs, inputs[0].workload(OPTIONS.prompt_length, batch)) for batch in batches}


def timed(checkpoints):
    return [Timed(continuing(one.model)) for one in checkpoints]


def test_the_cache_is_measured_layer_by_layer(llamas):
    original, pruned = measure_generation(timed(llamas), prompts(llamas, 1, 3), OPTIONS, 2)
    width = llamas[0].model.config.head_dim
    groups = 2 * width * torch.float32.itemsize  # keys and values
    assert original.cache_bytes_per_token == 3 * 4 * groups
    assert pruned.cache_bytes_per_token == (1 + 2 + 4) * groups
    assert original.cache_dtype == pruned.cache_dtype == "float32"
    for found in (original, pruned):
        assert (found.prompt_tokens, found.new_tokens, found.runs, found.warmup) == (7, 4, 2, 1)
        assert [*found.speeds] == [1, 3]
        for speed in found.speeds.values():
            for rate in (speed.prefill_per_second, speed.decode_per_second):
                assert 0 < rate.lower <= rate.median <= rate.upper


def test_models_take_turns_and_read_each_token_once(llamas):
    models, seen = [one.model for one in llamas], []
    with hooks() as hook:
        for name, model in zip(("original", "pruned"), models, strict=True):
            tokens = model.get_input_embeddings()
            hook.before(tokens, lambda _, args, name=name: seen.append((name, *args[0].shape)))
        measure_generation(timed(llamas), prompts(llamas, 2), OPTIONS, 3)
    once = [(2, 7), (2, 1), (2, 1), (2, 1)]
    assert seen == [(name, *shape) for _ in range(1 + 3) for name in ("original", "pruned") for shape in once]


def test_an_end_token_ends_nothing(llamas, monkeypatch):
    model = llamas[0].model
    inputs = prompts(llamas, 1)[1][0]
    marks = Marks()
    first = int(generate(model, inputs, marks, 4).sequences[0, 7])
    assert marks.counts == [7, 1, 1, 1, 1] and marks.seconds == sorted(marks.seconds)
    monkeypatch.setattr(model.generation_config, "eos_token_id", first)
    found = generate(model, inputs, Marks(), 4).sequences[0, 7:]
    assert len(found) == 4 and first not in found


def test_models_keep_their_mode(llamas):
    model = llamas[0].model
    model.train()
    try:
        measure_generation(timed(llamas[:1]), {1: prompts(llamas, 1)[1][:1]}, OPTIONS, 1)
        assert model.training
    finally:
        model.eval()
