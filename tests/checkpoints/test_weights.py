"""Weights files of every form: nested, split, damaged, unsafe, prefixed."""

import argparse

import pytest
import torch
from helpers.states import STATE, write_state

from optin_cli.checkpoints.folders import FILE_SUFFIXES
from optin_cli.checkpoints.weights import (
    fit_state,
    fitting_notes,
    read_state,
    read_stored,
    storage_dtype,
    stored_types,
    with_counters,
)
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


def test_tensors_larger_than_what_is_stored_are_refused(tmp_path):
    torch.save({"w": torch.ones(1).expand(10**12)}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"holds w of shape \(1000000000000,\), more than the file stores"):
        read_stored([tmp_path / "w.pt"])
    torch.save({"w": torch.arange(3.0).expand(2, 3)}, tmp_path / "w.pt")
    assert read_stored([tmp_path / "w.pt"]).tensors["w"].shape == (2, 3)


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")
def test_sparse_tensors_are_refused(tmp_path):
    torch.save({"w": torch.eye(3).to_sparse()}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="holds w as a sparse_coo tensor"):
        read_stored([tmp_path / "w.pt"])


def test_weights_of_eight_bits_are_read_for_comparison(tmp_path):
    torch.save({"w": torch.ones(2).to(torch.float8_e4m3fn)}, tmp_path / "w.pt")
    assert read_state([tmp_path / "w.pt"])["w"].dtype == torch.float8_e4m3fn


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.pt does not exist"):
        read_state([tmp_path / "none.pt"])


MODEL = {"a.weight": torch.ones(1, 2), "a.bias": torch.ones(1), "b.weight": torch.zeros(2)}


def fitted(tmp_path, content, expected=MODEL):
    return fit_state(read_stored([write_state(tmp_path / "w.pt", content)]), expected, "tiny")


def under(prefix, state=MODEL):
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    "content",
    [
        MODEL,
        *({"epoch": 3, key: MODEL} for key in ("state_dict", "model", "net", "model_state_dict", "ema.best", "module")),
        {"net": {"weights": under("module.model.")}, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}},
        {"optimizer": {"state": {n: {"exp_avg": torch.ones(2)} for n in range(9)}}, "w": under("net._orig_mod.")},
        under("module."),
        under("_orig_mod.module."),
        {"a.module.weight": MODEL["a.weight"], "a._orig_mod.bias": MODEL["a.bias"], "b.weight": MODEL["b.weight"]},
        under("_fsdp_wrapped_module.", under("_checkpoint_wrapped_module.")),
        {"a": {"weight": MODEL["a.weight"], "bias": MODEL["a.bias"]}, "b": {"weight": MODEL["b.weight"]}},
        {"state_dict": MODEL, "args": argparse.Namespace(lr=0.1)},
        {"callbacks": {"best": torch.tensor(torch.inf)}, "state_dict": MODEL},
    ],
)
def test_weights_are_found_wherever_they_lie(tmp_path, content):
    found = fitted(tmp_path, content)
    assert found.state.keys() == MODEL.keys()
    assert all(torch.equal(found.state[name], tensor) for name, tensor in MODEL.items())
    assert (found.left_out, found.others) == ((), ())


@pytest.mark.parametrize(
    ("content", "left_out"),
    [
        ({"state_dict": under("model.") | {"loss.weight": torch.ones(2)}}, ("loss.weight",)),
        ({"state_dict": under("model.") | {"a.bias": torch.ones(1)}}, ("a.bias",)),
        (under("module.") | {"b.weight": MODEL["b.weight"]}, ("module.b.weight",)),
        (under("encoder.") | {"head.weight": torch.ones(1), "head.empty": torch.ones(0)}, ("head.weight",)),
    ],
)
def test_what_lies_beside_the_weights_is_left_out_by_name(tmp_path, content, left_out):
    found = fitted(tmp_path, content)
    assert found.state.keys() == MODEL.keys()
    assert found.left_out == left_out
    assert fitting_notes(found, found.left_out, "tiny", "Net") == (
        f"tiny: 1 tensor ({left_out[0]}) left out, which Net has no place for.",
    )


def test_tensors_at_the_level_of_a_wrapper_stay_beside_the_weights(tmp_path):
    """The library decides on them: they may be weights that it renames."""
    found = fitted(tmp_path, under("module.") | {"n_averaged": torch.tensor(5)})
    assert found.state.keys() == {*MODEL, "n_averaged"}


@pytest.mark.parametrize(
    ("content", "key", "others"),
    [
        ({"state_dict_ema": MODEL, "state_dict": MODEL}, "state_dict", ("state_dict_ema",)),
        ({"ema": MODEL, "model": MODEL, "best": MODEL}, "model", ("ema", "best")),
        ({"state_dict": under("ema_model.") | under("model.")}, "state_dict.model", ("state_dict.ema_model",)),
    ],
)
def test_of_several_sets_of_weights_the_usual_one_is_used_and_said(tmp_path, content, key, others):
    found = fitted(tmp_path, content)
    assert (found.state.keys(), found.key, found.others) == (MODEL.keys(), key, others)
    note = fitting_notes(found, (), "tiny", "Net")[0]
    assert note == f"tiny holds several sets of weights; {key} is used, not {', '.join(others)}."


def test_several_sets_of_weights_without_a_usual_one_are_refused(tmp_path):
    with pytest.raises(
        CheckpointError, match="2 state dicts that fit the model equally well: student, teacher"
    ) as caught:
        fitted(tmp_path, {"teacher": MODEL, "student": MODEL})
    assert "file of its own" in caught.value.hint


def test_names_that_the_model_has_stay(tmp_path):
    state = {"model.module.weight": torch.ones(1)}
    assert fitted(tmp_path, state, state).state == state


def test_where_nothing_fits_the_largest_mapping_is_left_to_the_library(tmp_path):
    found = fitted(tmp_path, {"few": {"x": torch.ones(1)}, "many": under("old.")}, {"other": torch.ones(1)})
    assert found.state.keys() == under("old.").keys()


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"a.weight": torch.ones(1, 2, dtype=torch.int8)}, "quantized: 1 of its weights are int8, such as a.weight"),
        ({"a.weight": torch.ones(1, 2).to(torch.float8_e4m3fn)}, "are float8_e4m3fn, such as a.weight"),
        ({"a.weight": None, "a.qweight": torch.ones(1, dtype=torch.int32)}, "are packed into whole numbers, such as a"),
        ({"a.weight": None, "a.weight_packed": torch.ones(1, dtype=torch.uint8)}, "are packed into whole numbers"),
    ],
)
def test_quantized_weights_are_refused(tmp_path, stored, message):
    content = {name: tensor for name, tensor in (MODEL | stored).items() if tensor is not None}
    with pytest.raises(CheckpointError, match=message) as caught:
        fitted(tmp_path, content)
    assert caught.value.hint == "Prune the original in 16 or 32 bits, then quantize what prune writes."


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="NaN or infinite values in 1 tensor"):
        fitted(tmp_path, {"net": MODEL | {"a.bias": torch.tensor([torch.nan])}})


def test_stored_types_are_those_that_the_library_put_together():
    state = {"q": torch.ones(2).half(), "k": torch.ones(2), "old": torch.ones(3).bfloat16(), "n": torch.tensor(3)}

    def load(stored):
        return {
            "qk": torch.cat([stored["q"], stored["k"]]),
            "new": stored["old"],
            "n": stored["n"],
            "empty": torch.ones(0),
        }

    assert stored_types(state, load) == {"qk": torch.float32, "new": torch.bfloat16}
    assert stored_types({"q": state["q"], "n": state["n"]}, load) == {}


def test_batch_norms_without_counters_have_counted_nothing():
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(2), torch.nn.Linear(2, 2))
    old = {name: tensor for name, tensor in model.state_dict().items() if "num_batches" not in name}
    found = with_counters(old, model)
    assert found.keys() == model.state_dict().keys()
    assert found["0.num_batches_tracked"] == 0
    assert with_counters(old | {"0.num_batches_tracked": torch.tensor(4)}, model)["0.num_batches_tracked"] == 4


def test_storage_type_is_that_of_most_values():
    assert storage_dtype({"a": torch.ones(5).half(), "b": torch.ones(3)}) == torch.float16
    assert storage_dtype({"a": torch.ones(5, dtype=torch.long)}) == torch.float32
