"""Generation certificates: the KV cache changes nothing, ties are no difference, and a wrong cache is an error."""

import pytest
import torch
from helpers.masks import make_mask
from helpers.models import build, make_inputs, save_checkpoint
from helpers.running import call

import optin_cli
from optin_cli.artifacts.base import parse
from optin_cli.artifacts.manifest import Manifest
from optin_cli.checkpoints import generation
from optin_cli.checkpoints.checkpoint import load
from optin_cli.errors import CertificateError

KEPT = {"decoder.0.head": [0, 2], "decoder.1.neuron": [3, 5], "decoder.2.neuron": []}


def pruned(tmp_path, family="llama", **overrides):
    checkpoint = load(save_checkpoint(tmp_path / "whole", family, "next", **overrides))
    return optin_cli.prune(checkpoint, make_mask(checkpoint, KEPT), tmp_path / "small")


def test_a_folder_is_certified_to_generate(tmp_path):
    manifest = pruned(tmp_path)
    found = manifest.certificate.generation
    assert (found.prompts, found.tokens, found.ties) == (2, 32, 0)
    assert 0 <= found.difference <= found.tolerance < 0.01
    assert "generates the same 32 tokens with and without KV cache" in (tmp_path / "small/README.md").read_text()
    older = manifest.model_dump(mode="json", by_alias=True)
    del older["certificate"]["generation"]
    assert parse(Manifest, Manifest.model_validate(older).dump(), "old").certificate.generation is None


def test_no_more_tokens_than_the_positions_hold(tmp_path):
    assert pruned(tmp_path, "gpt2", max_position_embeddings=30).certificate.generation.tokens == 22


def test_a_saved_generation_config_changes_nothing(tmp_path):
    folder = save_checkpoint(tmp_path / "whole", "llama", "next")
    stated = {"do_sample": True, "temperature": 9.0, "repetition_penalty": 5.0, "eos_token_id": list(range(99))}
    (folder / "generation_config.json").write_text(str(stated).replace("'", '"').replace("True", "true"))
    checkpoint = load(folder)
    found = optin_cli.prune(checkpoint, make_mask(checkpoint, KEPT), tmp_path / "small").certificate.generation
    assert (found.tokens, found.ties) == (32, 0)


BROKEN = {
    "a cache that forgets": ("lambda self, k, v, *args, **kwargs: (k, v)", "at token 2 of 32 the logits differ by"),
    "no cache": ("None", "cannot generate with its KV cache"),
}


@pytest.mark.parametrize(("update", "words"), BROKEN.values(), ids=BROKEN)
def test_a_cache_that_gives_something_else_is_an_error(tmp_path, monkeypatch, update, words):
    patch = f"import transformers.cache_utils\ntransformers.cache_utils.DynamicLayer.update = {update}\n"
    monkeypatch.setattr(generation, "CODE", patch + generation.CODE)
    with pytest.raises(CertificateError, match=words):
        pruned(tmp_path)
    assert not (tmp_path / "small").exists()


def logits(*rows):
    return torch.tensor([rows], dtype=torch.float32)


def test_equal_logits_are_a_tie():
    uncached = logits([1.0, 1.0, 0.0], [0.0, 2.0, 1.0])
    cached = uncached + logits([0.0, 1e-5, 0.0], [0.0, 0.0, 0.0])
    tensors = {"generated": cached.argmax(dim=-1), "cached": cached, "uncached": uncached}
    found = generation.judge_generation(tensors)
    assert (found.tokens, found.ties) == (2, 1) and "but for 1 tie(s)" in found.words


@pytest.mark.parametrize("wrong", [0.01, float("nan")])
def test_different_logits_are_no_tie(wrong):
    uncached = logits([1.0, 1.0, 0.0], [0.0, 2.0, 1.0])
    cached = uncached + logits([0.0, 0.0, 0.0], [0.0, wrong, 0.0])
    tensors = {"generated": cached.argmax(dim=-1), "cached": cached, "uncached": uncached}
    with pytest.raises(CertificateError, match="at token 2 of 2") as caught:
        generation.judge_generation(tensors)
    assert "Nothing was written" in caught.value.message


class TestPlan:
    def test_models_that_see_later_tokens_do_not_generate(self):
        assert generation.plan_generation(build("bert", "masked"), make_inputs(2, 10, padding=0), 60) is None
        assert generation.plan_generation(build("llama", "next"), make_inputs(2, 10, padding=0), 60) is not None

    @pytest.mark.parametrize(("most", "tokens"), [(None, 32), (40, 32), (20, 12), (9, 1)])
    def test_tokens(self, most, tokens):
        found = generation.plan_generation(build("llama", "next"), make_inputs(2, 10, padding=0), most)
        assert (found.length, found.tokens) == (8, tokens)

    def test_no_room(self):
        assert generation.plan_generation(build("llama", "next"), make_inputs(2, 10, padding=0), 8) is None


def test_the_command_says_so(tmp_path):
    folder = save_checkpoint(tmp_path / "whole", "llama", "next")
    (tmp_path / "mask.json").write_text(make_mask(load(folder), KEPT).dump())
    run = call("prune", folder, "--mask", tmp_path / "mask.json", "-o", tmp_path / "small", "--no-refit")
    assert run.code == 0 and "generates the same 32 tokens with and without KV cache" in run.err
