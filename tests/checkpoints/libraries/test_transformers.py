"""Checkpoints of transformers: image processors, quantized weights, storage types, weights of no use."""

import importlib.util
import json

import pytest
import torch
import transformers
from helpers.masks import make_mask
from helpers.models import SIDE, build, logits, random_kept, save_checkpoint, save_images
from helpers.running import call, done, write_rows
from PIL import Image
from safetensors.torch import load_file, save_file

import optin_cli
from optin_cli.checkpoints.checkpoint import load as load_checkpoint
from optin_cli.errors import ArchitectureError, CheckpointError


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
