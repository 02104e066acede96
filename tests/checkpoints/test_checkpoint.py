"""Checkpoints of transformers that are whole, moved, sharded, broken or undescribed."""

import json
import shutil

import pytest
import torch
from helpers.models import FAMILIES, HEADS, build, logits, save_checkpoint
from helpers.states import write_state
from safetensors.torch import load_file, save_file

from optin_cli.checkpoints.checkpoint import load as load_checkpoint
from optin_cli.checkpoints.folders import FILE_SUFFIXES
from optin_cli.errors import ArchitectureError, CheckpointError, UsageError

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


def test_tokens_with_settings_of_other_versions_print_nothing(folder, capfd):
    path = folder / "tokenizer_config.json"
    raw = json.loads(path.read_text())
    raw["added_tokens_decoder"] = {"0": {"content": "[PAD]", "special": True, "\x1b[2Jodd": True}}
    path.write_text(json.dumps(raw))
    load_checkpoint(folder).input.tokenizer()
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("suffix", FILE_SUFFIXES)
@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_state_dict_files_with_arch(folder, tmp_path, suffix, prefix):
    state = {prefix + name: tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    path = write_state(tmp_path / f"weights{suffix}", state)
    with pytest.raises(UsageError, match="state dict"):
        load_checkpoint(path)
    checkpoint = load_checkpoint(path, arch=f"hf:{folder}")
    assert checkpoint.name == "weights"
    assert torch.equal(logits(checkpoint.model), logits(load_checkpoint(folder).model))
    beside = write_state(folder / f"weights{suffix}", state)
    assert load_checkpoint(beside).sha256 == checkpoint.sha256 if suffix != ".safetensors" else True


def test_sharded_weights_load_as_one(folder):
    state = load_file(folder / "model.safetensors")
    names = sorted(state)
    files = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(names)}
    for part in set(files.values()):
        write_state(folder / part, {name: state[name] for name in names if files[name] == part})
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
def test_broken_folders_are_refused(folder, change, error, message):
    change(folder)
    with pytest.raises(error, match=message):
        load_checkpoint(folder)


def test_wrong_names_and_options_are_refused(folder, tmp_path):
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
