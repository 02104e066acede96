"""Weights files of every form, and checkpoints that are whole, broken, incomplete or unsafe."""

import json
import shutil

import pytest
import torch
from helpers.models import FAMILIES, HEADS, build, make_inputs, save_checkpoint
from safetensors.torch import load_file, save_file

from optin_cli.checkpoints.checkpoint import load as load_checkpoint
from optin_cli.checkpoints.folders import FILE_SUFFIXES, weight_files
from optin_cli.checkpoints.weights import read_state, storage_dtype, strip_prefix
from optin_cli.errors import ArchitectureError, CheckpointError, UsageError

STATE = {"a.weight": torch.tensor([[1.0, 2.0]]), "a.bias": torch.tensor([3.0]), "step": torch.tensor(7)}


def write(path, state=None):
    state = STATE if state is None else state
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return path


def assert_state(found):
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in STATE.items())


# Files


@pytest.mark.parametrize("suffix", FILE_SUFFIXES)
def test_every_file_type_reads_the_same(tmp_path, suffix):
    assert_state(read_state([write(tmp_path / f"w{suffix}")]))


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
    assert_state(read_state([write(tmp_path / "w.pt", content)]))


def test_several_files_are_one_state(tmp_path):
    parts = [write(tmp_path / f"{i}.safetensors", {name: STATE[name]}) for i, name in enumerate(STATE)]
    assert_state(read_state(parts))


class Harmful:
    def __reduce__(self):
        return (print, ("this must never run",))


def test_pickled_code_is_refused_and_not_run(tmp_path, capsys):
    path = write(tmp_path / "w.pt", {"a": torch.ones(1), "b": Harmful()})
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
def test_damaged_files(tmp_path, suffix, damage, message):
    path = write(tmp_path / f"w{suffix}")
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
def test_content_that_is_no_sound_state(tmp_path, content, message):
    with pytest.raises(CheckpointError, match=message):
        read_state([write(tmp_path / "w.pt", content)])


def test_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.pt does not exist"):
        read_state([tmp_path / "none.pt"])


@pytest.mark.parametrize("index", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}'])
def test_invalid_index(tmp_path, index):
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match="not a valid weight index"):
        weight_files(tmp_path)


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


# Checkpoints


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("saved") / "tiny", num_hidden_layers=1)


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "tiny")


def edit_config(folder, **changes):
    path = folder / "config.json"
    raw = {k: v for k, v in (json.loads(path.read_text()) | changes).items() if v is not ...}
    path.write_text(json.dumps(raw))


def logits(model):
    with torch.no_grad():
        return model(**make_inputs())[0]


@pytest.mark.parametrize(
    ("family", "head"), [(f, "classes") for f in FAMILIES] + [("bert", h) for h in HEADS], ids=lambda v: v
)
def test_saved_models_load_as_they_were(tmp_path, family, head):
    path = save_checkpoint(tmp_path / "tiny", family, head)
    checkpoint = load_checkpoint(path)
    torch.testing.assert_close(logits(checkpoint.model), logits(build(family, head)))
    assert (checkpoint.name, checkpoint.blueprint.auto_class) == ("tiny", HEADS[head][0])
    assert checkpoint.weight_bytes == (path / "model.safetensors").stat().st_size
    assert checkpoint.model.get_submodule(checkpoint.root) is checkpoint.model.base_model
    assert not checkpoint.model.training
    assert not any(p.requires_grad for p in checkpoint.model.parameters())
    kinds = {"regression": "real", "labels": "bernoulli", "base": "real"}
    assert {rule.kind for rule in checkpoint.structure.outputs} == {kinds.get(head, "categorical")}


def test_hash_follows_content_not_place(folder, tmp_path):
    first = load_checkpoint(folder).sha256
    moved = folder.rename(tmp_path / "elsewhere")
    assert load_checkpoint(moved).sha256 == first
    edit_config(moved, hidden_dropout_prob=0.2)
    assert load_checkpoint(moved).sha256 != first


def test_tokenizer_travels_with_the_folder(folder):
    tokenizer = load_checkpoint(folder).input.tokenizer()
    assert tokenizer("good film")["input_ids"] == [2, 25, 27, 3]
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(CheckpointError, match="no usable tokenizer"):
        load_checkpoint(folder).input.tokenizer()


@pytest.mark.parametrize("suffix", FILE_SUFFIXES)
@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_state_dict_files_with_arch(folder, tmp_path, suffix, prefix):
    state = {prefix + name: tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    path = write(tmp_path / f"weights{suffix}", state)
    with pytest.raises(UsageError, match="state dict"):
        load_checkpoint(path)
    checkpoint = load_checkpoint(path, arch=f"hf:{folder}")
    assert checkpoint.name == "weights"
    assert torch.equal(logits(checkpoint.model), logits(load_checkpoint(folder).model))
    beside = write(folder / f"weights{suffix}", state)
    assert load_checkpoint(beside).sha256 == checkpoint.sha256 if suffix != ".safetensors" else True


def test_shards(folder):
    state = load_file(folder / "model.safetensors")
    names = sorted(state)
    files = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(names)}
    for part in set(files.values()):
        write(folder / part, {name: state[name] for name in names if files[name] == part})
    whole = logits(load_checkpoint(folder).model)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    assert torch.equal(logits(load_checkpoint(folder).model), whole)
    (folder / "part-1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"part-1\.safetensors does not exist"):
        load_checkpoint(folder)


def rewrite(folder, change):
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda f: (f / "model.safetensors").unlink(), CheckpointError, "holds no weights: found config.json"),
        (lambda f: (f / "config.json").unlink(), CheckpointError, "has no config.json: found model.safetensors"),
        (lambda f: (f / "config.json").write_text("{"), CheckpointError, "config.json is not valid JSON"),
        (lambda f: (f / "config.json").write_bytes(b"\xff"), CheckpointError, "config.json is not valid JSON"),
        (lambda f: (f / "config.json").write_text("[]"), CheckpointError, "names no model_type"),
        (lambda f: edit_config(f, model_type=...), CheckpointError, "names no model_type"),
        (lambda f: edit_config(f, model_type="brt"), ArchitectureError, "model type 'brt'"),
        (lambda f: edit_config(f, architectures=...), CheckpointError, "names no model class"),
        (lambda f: edit_config(f, architectures=["BertForPreTraining"]), CheckpointError, "BertForPreTraining"),
        (lambda f: edit_config(f, num_attention_heads=5), CheckpointError, "does not load|refused"),
        (lambda f: edit_config(f, intermediate_size=48), CheckpointError, "does not load as BertForSequenceClass"),
        (lambda f: edit_config(f, num_hidden_layers=2), CheckpointError, "lacks 16 weight.s. that BertForSeq"),
        (lambda f: edit_config(f, hidden_size="wide"), CheckpointError, "refused by transformers"),
        (
            lambda f: rewrite(f, lambda s: [s.pop(n) for n in list(s) if n.startswith("classifier")]),
            CheckpointError,
            r"lacks 2 weight\(s\) .* classifier.bias, classifier.weight",
        ),
        (lambda f: rewrite(f, lambda s: s["classifier.bias"].fill_(torch.nan)), CheckpointError, "NaN or infinite"),
        (
            lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-9]),
            CheckpointError,
            "not a complete safetensors file",
        ),
    ],
)
def test_broken_folders(folder, change, error, message):
    change(folder)
    with pytest.raises(error, match=message):
        load_checkpoint(folder)


def test_wrong_names_and_options(folder, tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        load_checkpoint(tmp_path / "none")
    with pytest.raises(CheckpointError, match="no model hub could supply it"):
        load_checkpoint("nobody/nothing-at-all")
    with pytest.raises(UsageError, match="is not a file"):
        load_checkpoint(folder, arch="elsewhere")
    with pytest.raises(CheckpointError, match="txt file; expected a checkpoint folder"):
        (tmp_path / "w.txt").write_text("x")
        load_checkpoint(tmp_path / "w.txt")
    with pytest.raises(UsageError, match="device 'gpu9' cannot be used"):
        load_checkpoint(folder, device="gpu9")


def test_own_description_replaces_the_shipped_one(folder, tmp_path):
    from optin_cli.architectures.registry import FOLDER

    raw = json.loads((FOLDER / "bert.json").read_text())
    raw["stacks"][0]["groups"].pop(0)
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(raw))
    checkpoint = load_checkpoint(folder, architecture=path)
    assert [group.name for group in checkpoint.structure.groups] == ["encoder.0.neuron"]


def test_a_hub_id_is_taken_from_the_local_cache(tmp_path, monkeypatch):
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    snapshot = cache / "models--org--tiny" / "snapshots" / ("0" * 40)
    save_checkpoint(snapshot)
    reference = cache / "models--org--tiny" / "refs" / "main"
    reference.parent.mkdir()
    reference.write_text("0" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    checkpoint = load_checkpoint("org/tiny")
    assert (checkpoint.name, checkpoint.blueprint.model_class) == ("org/tiny", "BertForSequenceClassification")
    with pytest.raises(CheckpointError, match="no model hub could supply it"):
        load_checkpoint("org/other")


def test_an_undescribed_family_loads_with_its_own_description(tmp_path):
    """A family that no shipped file covers needs --architecture alone."""
    from transformers import AutoModelForSequenceClassification, ConvBertConfig

    from optin_cli.errors import ArchitectureError

    config = ConvBertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=24
    )
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "conv")
    with pytest.raises(ArchitectureError, match="convbert"):
        load_checkpoint(tmp_path / "conv")
    rule = {
        "kind": "neuron",
        "consumer": "output.dense",
        "slices": [
            {"axis": 0, "parameters": ["intermediate.dense.weight", "intermediate.dense.bias"]},
            {"axis": 1, "parameters": ["output.dense.weight"]},
        ],
    }
    stack = {"name": "encoder", "blocks": "encoder.layer.*", "groups": [rule]}
    mine = {"family": "convbert", "library": "transformers", "model_types": ["convbert"], "stacks": [stack]}
    (tmp_path / "mine.json").write_text(json.dumps(mine))
    structure = load_checkpoint(tmp_path / "conv", architecture=tmp_path / "mine.json").structure
    assert [(g.name, g.units) for g in structure.groups] == [("encoder.0.neuron", 24)]
