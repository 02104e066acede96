"""Checkpoints of transformers: image processors, quantized weights, storage types, weights of no use, classes."""

import importlib.util
import json

import pytest
import torch
import transformers
from helpers.masks import make_mask
from helpers.models import FAMILIES, SIDE, build, logits, make_inputs, random_kept, save_checkpoint, save_images
from helpers.running import call, done, write_rows
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import optin_cli
from optin_cli.checkpoints.checkpoint import load as load_checkpoint
from optin_cli.errors import ArchitectureError, ArtifactError, CheckpointError, UsageError
from optin_cli.options.scoring import ScoreOptions
from optin_cli.searching.limits import Limits


def test_without_an_image_processor_images_cannot_be_prepared(tmp_path):
    path = save_images(tmp_path / "tiny", "vit")
    (path / "preprocessor_config.json").unlink()
    checkpoint = load_checkpoint(path)
    assert checkpoint.blueprint.image.shape == (3, SIDE, SIDE)
    with pytest.raises(CheckpointError, match="no image processor"):
        checkpoint.input.preprocess()


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rewrite(folder, change):
    state = load_file(folder / "model.safetensors")
    save_file(change(state), folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("key", "stated", "method"),
    [
        ("quantization_config", {"quant_method": "gptq", "bits": 4}, "gptq"),
        ("quantization_config", {"load_in_8bit": True}, "bitsandbytes"),
        ("compression_config", {"quant_method": "compressed-tensors"}, "compressed-tensors"),
        ("quantization_config", {"bits": 4}, "a method that its config does not name"),
    ],
)
def test_quantized_checkpoints_are_refused_in_one_sentence(tmp_path, key, stated, method):
    folder = save_checkpoint(tmp_path / "tiny", num_hidden_layers=1)
    edit_config(folder, **{key: stated})
    with pytest.raises(CheckpointError, match=f"tiny is quantized by {method}\\.$") as caught:
        load_checkpoint(folder)
    assert caught.value.hint == "Prune the original in 16 or 32 bits, then quantize what prune writes."


def test_each_tensor_keeps_its_storage_type(tmp_path):
    folder = save_checkpoint(tmp_path / "tiny", num_hidden_layers=1)
    rewrite(folder, lambda state: {n: t if "LayerNorm" in n else t.bfloat16() for n, t in state.items()})
    checkpoint = load_checkpoint(folder)
    kept = random_kept(checkpoint.structure, 1)
    optin_cli.prune(checkpoint, make_mask(checkpoint, kept), tmp_path / "small")
    types = {n: t.dtype for n, t in load_file(tmp_path / "small" / "model.safetensors").items()}
    assert {t for n, t in types.items() if "LayerNorm" in n} == {torch.float32}
    assert {t for n, t in types.items() if "LayerNorm" not in n} == {torch.bfloat16}
    again = load_checkpoint(tmp_path / "small")
    assert {name: again.stored_as(name) for name in types} == types


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tied_weights_are_stored_once(tmp_path, dtype):
    folder = save_checkpoint(tmp_path / "tiny", "llama", "next", dtype=dtype, tie_word_embeddings=True)
    checkpoint = load_checkpoint(folder)
    kept = random_kept(checkpoint.structure, 1)
    optin_cli.prune(checkpoint, make_mask(checkpoint, kept), tmp_path / "small")
    stored = load_file(tmp_path / "small" / "model.safetensors")
    assert ("lm_head.weight" in stored, stored["model.embed_tokens.weight"].dtype) == (False, dtype)


def test_weights_of_another_head_are_left_out_and_named(tmp_path):
    folder = save_checkpoint(tmp_path / "tiny", num_hidden_layers=1)
    rewrite(folder, lambda state: state | {"cls.predictions.bias": torch.ones(3)})
    assert load_checkpoint(folder).left_out == ("cls.predictions.bias",)
    said = "1 tensor (cls.predictions.bias) left out, which BertForSequenceClassification has no place for."
    assert said in done("profile", folder).err


def test_weights_of_another_model_are_refused(tmp_path):
    folder = save_checkpoint(tmp_path / "tiny", num_hidden_layers=1)
    rewrite(folder, lambda state: {f"other{n}.x": t for n, t in enumerate(state.values())})
    with pytest.raises(CheckpointError, match=r"None of the weights of .*tiny has a place in BertForSeq.*other0\.x"):
        load_checkpoint(folder)


def test_batch_norms_of_old_have_counted_nothing(tmp_path):
    folder = save_images(tmp_path / "tiny", "resnet")
    whole = load_checkpoint(folder)
    rewrite(folder, lambda state: {n: t for n, t in state.items() if "num_batches" not in n})
    assert torch.equal(logits(load_checkpoint(folder).model), logits(whole.model))


def test_models_of_one_channel_take_grayscale_images(tmp_path):
    folder = save_images(tmp_path / "tiny", "vit", num_channels=1)
    transformers.ViTImageProcessor(
        size={"height": SIDE, "width": SIDE}, image_mean=[0.5], image_std=[0.5]
    ).save_pretrained(folder)
    checkpoint = load_checkpoint(folder)
    assert checkpoint.blueprint.image.shape == (1, SIDE, SIDE)
    pixels = checkpoint.input.preprocess()(Image.new("RGB", (9, 9), (51, 51, 51)))
    torch.testing.assert_close(torch.as_tensor(pixels), torch.full((1, SIDE, SIDE), -0.6))


def test_bare_vision_backbones_put_out_features(tmp_path):
    folder = save_images(tmp_path / "tiny", "vit")
    build("vit").vit.save_pretrained(folder)
    checkpoint = load_checkpoint(folder)
    (output,) = checkpoint.structure.outputs
    assert (output.name, output.kind, checkpoint.blueprint.auto_class) == ("last_hidden_state", "real", "AutoModel")
    kept = random_kept(checkpoint.structure, 1)
    optin_cli.prune(checkpoint, make_mask(checkpoint, kept), tmp_path / "small")


def test_models_that_look_like_a_family_but_bind_their_channels_are_refused_by_name(tmp_path):
    config = transformers.ConvNextV2Config(num_stages=1, depths=[1], hidden_sizes=[8], num_labels=3)
    transformers.ConvNextV2ForImageClassification(config).save_pretrained(tmp_path / "v2")
    with pytest.raises(ArchitectureError, match="'convnextv2' cannot be pruned: its layers divide each channel's"):
        load_checkpoint(tmp_path / "v2")


def test_a_tokenizer_beyond_the_embeddings_is_refused(tmp_path):
    folder = save_checkpoint(tmp_path / "tiny", num_hidden_layers=1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = load_checkpoint(folder).input.vocabulary
    tokenizer.add_tokens([f"new{n}" for n in range(rows)])
    tokenizer.save_pretrained(folder)
    known = write_rows(tmp_path / "known.jsonl", [{"text": "good film"}] * 8)
    assert done("score", folder, "--calib", known, "-o", tmp_path / "known")
    data = write_rows(tmp_path / "new.jsonl", [{"text": f"good new{rows - 1}"}] * 8)
    said = call("score", folder, "--calib", data, "-o", tmp_path / "scores").err
    assert f"has {len(tokenizer)} tokens and gives id {len(tokenizer) - 1}" in said and f"have {rows} rows" in said
    assert "resize_token_embeddings" in said


def test_a_sentencepiece_file_alone_needs_its_library(tmp_path, monkeypatch):
    folder = save_checkpoint(tmp_path / "tiny", num_hidden_layers=1)
    for path in folder.glob("*token*"):
        path.unlink()
    (folder / "spm.model").write_bytes(b"pieces")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(
        CheckpointError, match=r"only a SentencePiece file, spm\.model, and sentencepiece is not"
    ) as caught:
        load_checkpoint(folder).input.tokenizer()
    assert "pip install sentencepiece" in caught.value.hint


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
