"""Checkpoints whose weights stay in their files: parts open and close, shards, tied weights, what is refused."""

import json

import pytest
import torch
from helpers.models import build, save_checkpoint, save_images
from safetensors.torch import load_file, save_file

from optin_cli.checkpoints import checkpoint as checkpoint_module
from optin_cli.checkpoints.checkpoint import load
from optin_cli.checkpoints.streaming import REST, exceed_memory, free_memory
from optin_cli.errors import CheckpointError
from optin_cli.profiling.profile import profile


def held(model):
    return {name: tensor for name, tensor in model.state_dict().items() if not tensor.is_meta}


@pytest.fixture(scope="module", params=["llama", "tied", "bert"])
def folder(request, tmp_path_factory):
    """Checkpoints in several shards, of 16 bits."""
    family, head = ("bert", "classes") if request.param == "bert" else ("llama", "next")
    model = build(family, head, dtype=torch.bfloat16, tie_word_embeddings=request.param == "tied")
    path = tmp_path_factory.mktemp("streamed") / request.param
    model.save_pretrained(path, max_shard_size="20KB")
    assert len(list(path.glob("*.safetensors"))) > 2
    return path


def test_parts_have_the_weights_of_the_whole_while_they_are_open(folder):
    whole, streamed = load(folder), load(folder, stream=True)
    state, streaming, model = whole.model.state_dict(), streamed.streaming, streamed.model
    assert streamed.structure == whole.structure and streamed.sources == whole.sources
    assert not held(model) and whole.streaming is None
    seen = set()
    for part in (*streaming.blocks, REST):
        with streaming.opened(part):
            assert held(model).keys() == {name for name in state if streaming.owns(part, name)}
            assert all(torch.equal(tensor, state[name]) for name, tensor in held(model).items())
            seen |= held(model).keys()
        assert not held(model)
    assert seen == state.keys()
    computed = dict(whole.model.named_buffers())
    assert all(torch.equal(b, computed[n]) for n, b in model.named_buffers() if n not in state)


def test_open_parts_may_be_changed_and_are_read_again(folder):
    streamed = load(folder, stream=True)
    block = streamed.streaming.blocks[0]
    with streamed.streaming.opened(block):
        first = {name: tensor.clone() for name, tensor in held(streamed.model).items()}
        for tensor in held(streamed.model).values():
            tensor.zero_()
        with streamed.streaming.opened(block):
            assert not any(tensor.any() for tensor in held(streamed.model).values()), "it was open already"
        assert held(streamed.model)
    with streamed.streaming.opened(block):
        assert all(torch.equal(tensor, first[name]) for name, tensor in held(streamed.model).items())


def test_tied_weights_stay_one(tmp_path):
    streamed = load(save_checkpoint(tmp_path / "model", "llama", "next", tie_word_embeddings=True), stream=True)
    model = streamed.model
    for parts in ((), (REST,)):
        with streamed.streaming.opened(*parts):
            assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


def test_costs_need_no_weights(folder):
    assert profile(load(folder, stream=True)) == profile(load(folder))


def test_streaming_is_chosen_where_weights_would_fill_the_memory(folder, monkeypatch):
    numbers = [torch.empty(60, device="meta"), torch.empty(40, device="meta")]
    assert [exceed_memory(numbers, torch.float32, free) for free in (799, 800)] == [True, False]
    assert free_memory(torch.device("cpu")) > 1 << 20
    assert load(folder, stream=None).streaming is None
    monkeypatch.setattr(checkpoint_module, "free_memory", lambda _device: 1000)
    chosen = load(folder, stream=None)
    assert chosen.streaming is not None and "is streamed" in chosen.notes[-1]


def test_what_cannot_be_streamed_is_opened_whole_unless_it_was_asked_for(tmp_path, monkeypatch):
    path = save_images(tmp_path / "image", "timm-vit")
    with pytest.raises(CheckpointError, match="of timm"):
        load(path, stream=True)
    monkeypatch.setattr(checkpoint_module, "free_memory", lambda _device: 1000)
    assert load(path, stream=None).streaming is None


@pytest.mark.parametrize(("change", "words"), [("drop", "1 tensor"), ("cut", "in that shape"), ("rename", "2 tensors")])
def test_weights_under_other_names_are_refused(tmp_path, change, words):
    path = save_checkpoint(tmp_path / "model")
    state = load_file(path / "model.safetensors")
    name = "bert.encoder.layer.1.attention.output.LayerNorm.weight"
    if change == "rename":  # as files of old have it
        for ours, theirs in (("weight", "gamma"), ("bias", "beta")):
            state[name.replace("weight", theirs)] = state.pop(name.replace("weight", ours))
    else:
        tensor = state.pop(name)
        state |= {name: tensor[:3].clone()} if change == "cut" else {}
    save_file(state, path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=f"cannot be streamed.*{words}"):
        load(path, stream=True)


def test_quantized_weights_are_refused(tmp_path):
    path = save_checkpoint(tmp_path / "model")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(CheckpointError, match="quantized"):
        load(path, stream=True)


def test_files_that_are_read_as_a_whole_are_refused(tmp_path, monkeypatch):
    path = save_checkpoint(tmp_path / "model")
    torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="in torch's files"):
        load(path, stream=True)
    monkeypatch.setattr(checkpoint_module, "free_memory", lambda _device: 1000)
    assert load(path, stream=None).streaming is None
