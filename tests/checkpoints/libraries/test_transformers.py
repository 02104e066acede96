"""Checkpoints of transformers: the class that they are opened as, and configs that say how others computed."""

import json

import pytest
import torch
from helpers.masks import make_mask
from helpers.models import FAMILIES, SIDE, build, logits, make_inputs, save_checkpoint, save_images
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import optin_cli
from optin_cli.checkpoints.checkpoint import load as load_checkpoint
from optin_cli.errors import ArtifactError, CheckpointError, UsageError
from optin_cli.options.scoring import ScoreOptions
from optin_cli.searching.limits import Limits


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_without_an_image_processor_images_cannot_be_prepared(tmp_path):
    path = save_images(tmp_path / "tiny", "vit")
    (path / "preprocessor_config.json").unlink()
    checkpoint = load_checkpoint(path)
    assert checkpoint.blueprint.image.shape == (3, SIDE, SIDE)
    with pytest.raises(CheckpointError, match="no image processor"):
        checkpoint.input.preprocess()


# The class that a checkpoint is opened as


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    """A tiny BERT that fills in masked tokens. To be read only."""
    return save_checkpoint(tmp_path_factory.mktemp("masked") / "bert", head="masked")


@pytest.mark.parametrize("family", FAMILIES)
def test_masked_language_models_open_as_bare_encoders(tmp_path, family):
    folder = save_checkpoint(tmp_path / "tiny", family, "masked")
    whole, bare = load_checkpoint(folder), load_checkpoint(folder, as_class="AutoModel")
    assert bare.structure.units == whole.structure.units
    assert bare.blueprint.model_class == type(build(family, "base")).__name__
    assert (bare.source.opened_as, whole.source.opened_as) == ("AutoModel", None)
    assert bare.sha256 == whole.sha256
    inputs = make_inputs()
    with torch.no_grad():
        expected = whole.model.base_model(**inputs)[0]
    torch.testing.assert_close(logits(bare.model, inputs), expected)
    assert bare.left_out and not whole.left_out
    assert not {name for name in bare.left_out if name.startswith(f"{whole.root}.")}


def test_nothing_is_made_up_for_parts_that_a_head_does_not_have(masked, tmp_path):
    bare = load_checkpoint(masked, as_class="AutoModel")
    assert bare.model.pooler is None
    kept = {"encoder.0.neuron": list(range(20))}
    manifest = optin_cli.prune(bare, make_mask(bare, kept, seq_len=16), tmp_path / "small")
    assert manifest.model_class == "BertModel"
    assert json.loads((tmp_path / "small" / "config.json").read_text())["architectures"] == ["BertModel"]
    names = load_file(tmp_path / "small" / "model.safetensors").keys()
    assert not [name for name in names if "pooler" in name or name.startswith("cls")]
    again = load_checkpoint(tmp_path / "small")
    assert again.blueprint.auto_class == "AutoModel" and again.source.opened_as is None
    uniform = optin_cli.search(optin_cli.score(bare, options=MAGNITUDE), Limits(keep_macs=0.85, layout="uniform"))
    assert optin_cli.prune(bare, uniform, tmp_path / "plain").layout == "uniform"


MAGNITUDE = ScoreOptions(criterion="magnitude", units=("heads", "neurons"))


def test_the_class_that_a_config_names_is_no_other(masked):
    assert load_checkpoint(masked, as_class="AutoModelForMaskedLM").source == load_checkpoint(masked).source


@pytest.mark.parametrize(("made", "given"), [("AutoModel", None), (None, "AutoModel")])
def test_artifacts_of_one_class_are_refused_for_another(masked, tmp_path, made, given):
    scores = optin_cli.score(load_checkpoint(masked, as_class=made), options=MAGNITUDE)
    assert scores.header.inputs["checkpoint"].opened_as == made
    mask = optin_cli.search(scores, Limits(keep_macs=0.8))
    with pytest.raises(ArtifactError, match="mask was made from bert opened as") as caught:
        optin_cli.prune(load_checkpoint(masked, as_class=given), mask, tmp_path / "small")
    assert ("Pass --as AutoModel" if made else "Leave out --as") in caught.value.hint
    optin_cli.prune(load_checkpoint(masked, as_class=made), mask, tmp_path / "small")


def test_heads_without_their_weights_are_refused(masked):
    with pytest.raises(CheckpointError, match=r"lacks 2 weight\(s\) that BertForTokenClassification needs: classifier"):
        load_checkpoint(masked, as_class="AutoModelForTokenClassification")


def test_a_class_that_does_not_exist_is_named(masked, tmp_path):
    with pytest.raises(UsageError, match="Unknown class --as AutoModelForMasked") as caught:
        load_checkpoint(masked, as_class="AutoModelForMasked")
    assert "Did you mean AutoModelForMaskedLM" in caught.value.hint
    with pytest.raises(CheckpointError, match="AutoModelForImageClassification has no class for bert") as caught:
        load_checkpoint(masked, as_class="AutoModelForImageClassification")
    assert "AutoModelForMaskedLM (BertForMaskedLM)" in caught.value.hint
    with pytest.raises(UsageError, match="this is a model of timm"):
        load_checkpoint(save_images(tmp_path / "timm", "timm-vit"), as_class="AutoModel")


@pytest.mark.parametrize("architectures", [["BertForSomething"], None])
def test_a_refused_class_names_those_that_work(tmp_path, architectures):
    folder = save_checkpoint(tmp_path / "tiny", head="masked")
    edit_config(folder, architectures=architectures)
    with pytest.raises(CheckpointError, match="no outputs to compare for") as caught:
        load_checkpoint(folder)
    assert "--as AutoModelForSequenceClassification (BertForSequenceClassification), " in caught.value.hint
    assert load_checkpoint(folder, as_class="AutoModelForMaskedLM").blueprint.model_class == "BertForMaskedLM"


@pytest.mark.parametrize("family", ["bert", "mpnet", "modernbert"])
def test_tied_embeddings_are_stored_once(tmp_path, family):
    whole = load_checkpoint(save_checkpoint(tmp_path / "whole", family, "masked"))
    kept = {next(group.name for group in whole.structure.groups if group.kind == "neuron"): list(range(20))}
    optin_cli.prune(whole, make_mask(whole, kept, seq_len=16), tmp_path / "small")
    with safe_open(tmp_path / "small" / "model.safetensors", "pt") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118 - not a mapping
    assert shapes.count([99, 32]) == 1
    small = load_checkpoint(tmp_path / "small").model
    assert small.get_input_embeddings().weight is small.get_output_embeddings().weight


# Configs that say how others computed

OUTPUT_KEYS = {"return_dict": False, "output_attentions": True, "output_hidden_states": True}


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
@pytest.mark.parametrize(
    "name", ["flash_attention_2", "flash_attention_3", "flex_attention", "kernels-community/flash"]
)
def test_attention_that_is_not_installed_is_replaced(tmp_path, key, name):
    folder = save_checkpoint(tmp_path / "tiny")
    edit_config(folder, **{key: name})
    checkpoint = load_checkpoint(folder)
    assert checkpoint.model.config._attn_implementation == "sdpa"
    torch.testing.assert_close(logits(checkpoint.model), logits(build("bert")))


def test_attention_of_a_backbone_is_replaced_too(tmp_path):
    folder = save_images(tmp_path / "tiny", "upernet-convnext")
    backbone = json.loads((folder / "config.json").read_text())["backbone_config"]
    edit_config(folder, backbone_config=backbone | {"attn_implementation": "flash_attention_2"})
    load_checkpoint(folder)


def test_stated_attention_that_needs_torch_alone_is_kept(tmp_path):
    folder = save_checkpoint(tmp_path / "tiny")
    edit_config(folder, attn_implementation="eager")
    assert load_checkpoint(folder).model.config._attn_implementation == "eager"


@pytest.mark.parametrize("changes", [{key: value} for key, value in OUTPUT_KEYS.items()] + [OUTPUT_KEYS])
def test_outputs_have_names_whatever_the_config_says(tmp_path, changes):
    folder = save_checkpoint(tmp_path / "tiny")
    edit_config(folder, **changes)
    checkpoint = load_checkpoint(folder)
    with torch.no_grad():
        found = checkpoint.model(**make_inputs())
    assert list(found) == ["logits"]
    torch.testing.assert_close(found["logits"], logits(build("bert")))
    kept = {"encoder.0.neuron": list(range(20)), "encoder.1.head": [0, 2]}
    optin_cli.prune(checkpoint, make_mask(checkpoint, kept, seq_len=16), tmp_path / "small")
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    assert config.get("return_dict", True) is changes.get("return_dict", True)
    load_checkpoint(tmp_path / "small")


@pytest.mark.parametrize("layer", ["decoder.weight", "decoder.bias"])
def test_weights_stored_twice_are_read(masked, tmp_path, layer):
    """Files of earlier versions hold tied weights under both names."""
    state = load_file(masked / "model.safetensors")
    twin = {"decoder.weight": "bert.embeddings.word_embeddings.weight", "decoder.bias": "cls.predictions.bias"}[layer]
    folder = save_checkpoint(tmp_path / "tiny", head="masked")
    save_file(
        {**state, f"cls.predictions.{layer}": state[twin].clone()}, folder / "model.safetensors", {"format": "pt"}
    )
    assert torch.equal(logits(load_checkpoint(folder).model), logits(load_checkpoint(masked).model))


def test_modernbert_of_earlier_versions_is_read(tmp_path):
    """Published configs state the rotary frequencies by keys that are gone, and what a run on a GPU needs."""
    folder = save_checkpoint(tmp_path / "tiny", "modernbert", "masked")
    config = json.loads((folder / "config.json").read_text())
    for key in ("rope_parameters", "layer_types"):
        del config[key]
    config |= {"global_rope_theta": 160000.0, "local_rope_theta": 10000.0, "global_attn_every_n_layers": 2}
    config |= {"reference_compile": True, "deterministic_flash_attn": False, "position_embedding_type": "absolute"}
    (folder / "config.json").write_text(json.dumps(config | {"attn_implementation": "flash_attention_2"}))
    torch.testing.assert_close(logits(load_checkpoint(folder).model), logits(build("modernbert", "masked")))
