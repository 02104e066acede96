"""Weights files of every form: nested, split, damaged, unsafe, prefixed."""

import pytest
import torch
from helpers.states import STATE, write_state

from optin_cli.checkpoints.folders import FILE_SUFFIXES
from optin_cli.checkpoints.weights import read_state, storage_dtype, strip_prefix
from optin_cli.errors import CheckpointError


def assert_state(found):
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in STATE.items())


@pytest.mark.parametrize("suffix", FILE_SUFFIXES)
def test_every_file_type_reads_the_same(tmp_path, suffix):
    assert_state(read_state([write_state(tmp_path / f"w{suffix}")]))


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": STATE, "epoch": 3, "lr": 0.1},
        {"model": STATE, "optimizer": {"state": {}}},
        {"state_dict": {"model": STATE}},
        STATE | {"name": "tiny"},
    ],
)
def test_nested_states_are_found(tmp_path, content):
    assert_state(read_state([write_state(tmp_path / "w.pt", content)]))


def test_several_files_are_one_state(tmp_path):
    parts = [write_state(tmp_path / f"{i}.safetensors", {name: STATE[name]}) for i, name in enumerate(STATE)]
    assert_state(read_state(parts))


class Harmful:
    def __reduce__(self):
        return (print, ("this must never run",))


def test_pickled_code_is_refused_and_not_run(tmp_path, capsys):
    path = write_state(tmp_path / "w.pt", {"a": torch.ones(1), "b": Harmful()})
    with pytest.raises(CheckpointError, match="holds more than tensors, so it is refused") as caught:
        read_state([path])
    assert "save_file" in caught.value.hint
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda _content: b"", "is empty"),
        (lambda content: content[:-8], "not a complete safetensors file|not a readable torch file"),
        (lambda content: content[:20], "not a complete safetensors file|not a readable torch file"),
        (lambda _content: b"<!DOCTYPE html>", "not a complete safetensors file|not a readable torch file"),
        (
            lambda _content: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "not a complete safetensors file|not a readable torch file",
        ),
    ],
    ids=["empty", "cut short", "head only", "web page", "lfs pointer"],
)
def test_damaged_files_are_refused(tmp_path, suffix, damage, message):
    path = write_state(tmp_path / f"w{suffix}")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=message):
        read_state([path])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(1)], "holds a list; expected a state dict"),
        (torch.ones(1), "holds a Tensor; expected a state dict"),
        ({"epoch": 1, "lr": 0.1}, "holds no tensors; its keys are epoch, lr"),
        ({}, "holds no tensors; its keys are none"),
        ({"a": torch.tensor([1.0, torch.nan])}, "NaN or infinite values in 1 tensor.s.: a"),
        ({"a": torch.tensor([torch.inf]), "b": torch.ones(1)}, "NaN or infinite values in 1 tensor.s.: a"),
    ],
)
def test_content_that_is_no_sound_state_is_refused(tmp_path, content, message):
    with pytest.raises(CheckpointError, match=message):
        read_state([write_state(tmp_path / "w.pt", content)])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.pt does not exist"):
        read_state([tmp_path / "none.pt"])


@pytest.mark.parametrize("prefix", ["module.", "model.", "module.model.", ""])
def test_common_prefixes_go_when_the_model_knows_the_rest(prefix):
    state = {prefix + name: tensor for name, tensor in STATE.items() if "." in name}
    assert set(strip_prefix(state, {"a.weight", "a.bias"})) == {"a.weight", "a.bias"}


def test_prefixes_that_the_model_has_stay():
    state = {"model.a.weight": STATE["a.weight"]}
    assert strip_prefix(state, {"model.a.weight"}) == state
    assert strip_prefix(state, {"other"}) == state


def test_storage_type_is_that_of_most_values():
    assert storage_dtype({"a": torch.ones(5).half(), "b": torch.ones(3)}) == torch.float16
    assert storage_dtype({"a": torch.ones(5, dtype=torch.long)}) == torch.float32
