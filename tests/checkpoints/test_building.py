"""A config cannot ask for a model that is far larger than its weights, and is refused before memory is spent."""

import json
import shutil
import struct

import pytest
from helpers.models import save_checkpoint, save_images
from helpers.running import call, done

HUGE = {"depth": (10**5, "more than"), "embed_dim": (32_000, "numbers"), "img_size": ([10**6, 10**6], "numbers")}
WIDE = {"hidden_size": 4 * 10**6, "intermediate_size": 10**9, "num_hidden_layers": 10**6, "vocab_size": 10**12}


def change(path, key, value):
    raw = json.loads(path.read_text())
    raw.get("model_args", raw)[key] = value
    path.write_text(json.dumps(raw))


@pytest.mark.parametrize("key", HUGE)
def test_models_of_timm(here, key):
    folder = save_images(here / "vit", "timm-vit")
    value, words = HUGE[key]
    change(folder / "config.json", key, value)
    result = call("profile", "vit")
    assert result.code == 1 and "far more than its weights" in result.err and words in result.err, result.err


@pytest.mark.parametrize("key", WIDE)
def test_models_of_transformers(here, key):
    folder = save_checkpoint(here / "bert")
    change(folder / "config.json", key, WIDE[key])
    result = call("profile", "bert")
    assert result.code == 1 and "defect" not in result.err, result.err
    assert "far more than its weights" in result.err or "layers" in result.err, result.err


def test_folders_that_were_cut_are_built_whole_first(here):
    save_images(here / "vit", "timm-vit")
    done("score", "vit", "--criterion", "magnitude", "-o", "s.safetensors")
    done("search", "s.safetensors", "--keep-flops", "0.3", "-o", "m.json")
    done("prune", "vit", "--mask", "m.json", "--no-refit", "-o", "small")
    done("profile", "small")


def with_axes(path, count):
    """Give the first tensor of a safetensors file very many axes of one."""
    raw = path.read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + size])
    name = next(key for key in header if key != "__metadata__")
    header[name]["shape"] = [1] * count + header[name]["shape"]
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + size :])


@pytest.mark.parametrize("axes", [70, 200_000])
def test_tensors_of_very_many_axes(made, here, axes):
    shutil.copytree(made.bert, "bert")
    shutil.copyfile(made.scores, "s.safetensors")
    with_axes(here / "bert/model.safetensors", axes)
    with_axes(here / "s.safetensors", axes)
    for args in (
        ("profile", "bert"),
        ("diff", "bert", made.other),
        ("inspect", "s.safetensors"),
        ("search", "s.safetensors", "--keep-flops", "0.6", "-o", "m.json"),
    ):
        result = call(*args)
        assert result.code == 1 and "axes; expected at most 64" in result.err, result.err
