"""Every text family and head through the Python API: the pruned folder computes what the masked model computed."""

import pytest
import torch
from helpers.masks import make_mask
from helpers.models import DECODERS, FAMILIES, HEADS, OTHER_HEADS, make_inputs, save_checkpoint
from helpers.running import write_rows

import optin_cli
from optin_cli.artifacts.base import parse
from optin_cli.artifacts.manifest import Manifest
from optin_cli.checkpoints.checkpoint import load as load_checkpoint
from optin_cli.model.head_dims import head_dims_of
from optin_cli.model.masking import masked
from optin_cli.options.scoring import ScoreOptions
from optin_cli.searching.limits import Limits

OPTIONS = ScoreOptions(samples=4, probes=1, batch_size=4, max_length=24)

CASES = [
    *((family, "classes") for family in FAMILIES),
    *(("bert", head) for head in HEADS if head != "classes"),
    *((family, "next") for family in DECODERS),
    *((family, "masked") for family in ("mpnet", "roberta", "albert", "deberta-v2", "modernbert")),
    *(("bert", head) for head in OTHER_HEADS),
    ("albert", "pretraining"),
    ("electra", "pretraining"),
    ("modernbert", "choices"),
]


def outputs_of(checkpoint, model, kept=None):
    """The outputs that the head is judged by, at real tokens."""
    inputs = make_inputs(3, 12)
    given = {k: t.unsqueeze(1) for k, t in inputs.items()} if checkpoint.blueprint.head.choices else inputs
    with torch.no_grad(), masked(model, checkpoint.structure, kept or {}):
        found = model(**given)
    tensors = [found[rule.name] for rule in checkpoint.structure.outputs]
    real = inputs["attention_mask"].bool()
    return [t[real] if t.shape[:2] == real.shape else t for t in tensors]


def kept_by(mask):
    return {name: group.kept for name, group in mask.groups.items()}


def check(checkpoint, mask, folder, manifest):
    """The folder holds what was promised, and computes what the masked model computed."""
    assert parse(Manifest, (folder / "optin.json").read_text(), "optin.json") == manifest
    assert manifest.certificate.reloaded <= manifest.certificate.tolerance
    assert manifest.certificate.masked <= manifest.certificate.tolerance
    for name, share in mask.budget.reached.items():
        after, before = getattr(manifest.after, name), getattr(manifest.before, name)
        assert after / before == pytest.approx(share, rel=1e-6)
        assert share <= mask.budget.asked.get(name, 1)
    expected = outputs_of(checkpoint, checkpoint.model, kept_by(mask))
    pruned = load_checkpoint(folder)
    for mine, theirs in zip(outputs_of(pruned, pruned.model), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    whole = outputs_of(checkpoint, checkpoint.model)
    assert not all(torch.allclose(a, b, rtol=1e-3) for a, b in zip(whole, expected, strict=True))
    return pruned


@pytest.mark.parametrize(("family", "head"), CASES)
def test_every_family_and_head(tmp_path, texts, family, head):
    checkpoint = load_checkpoint(save_checkpoint(tmp_path / "whole", family, head))
    scores = optin_cli.score(checkpoint, str(texts), options=OPTIONS)
    dims = head_dims_of(checkpoint.structure.kinds)
    found = {group.name for group in checkpoint.structure.groups}
    assert found <= set(scores.importance) <= found | (set() if dims is None else dims.units.keys())
    mask = optin_cli.search(scores, Limits(keep_macs=0.6))
    manifest = optin_cli.prune(checkpoint, mask, tmp_path / "small")
    pruned = check(checkpoint, mask, tmp_path / "small", manifest)
    generation = manifest.certificate.generation
    assert (generation is None) == (head != "next")
    assert generation is None or (generation.tokens == 32 and generation.difference <= generation.tolerance)
    assert isinstance(optin_cli.load(tmp_path / "small").model, torch.nn.Module)
    assert optin_cli.profile(pruned).totals == manifest.after
    assert pruned.input.tokenizer()("a b")["input_ids"] == checkpoint.input.tokenizer()("a b")["input_ids"]


@pytest.mark.parametrize("family", ["bert", "distilbert", "deberta-v2", "albert-2-groups"])
def test_layers_without_heads_or_neurons(tmp_path, family):
    checkpoint = load_checkpoint(save_checkpoint(tmp_path / "whole", family))
    heads, neurons = ([g.name for g in checkpoint.structure.groups if g.kind == kind] for kind in ("head", "neuron"))
    kept = {heads[0]: [], neurons[-1]: [], heads[-1]: [1], neurons[0]: [0, 2, 39]}
    mask = make_mask(checkpoint, kept, seq_len=32)
    check(checkpoint, mask, tmp_path / "small", optin_cli.prune(checkpoint, mask, tmp_path / "small"))


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi3", "gpt2"])
def test_refit_where_layers_keep_no_unit(tmp_path, family):
    texts = write_rows(tmp_path / "texts.jsonl", [{"text": f"{a} {b} good"} for a in "abcde" for b in "fghij"])
    checkpoint = load_checkpoint(save_checkpoint(tmp_path / "whole", family, "next"))
    kept = {"decoder.0.neuron": [], "decoder.1.neuron": [3], "decoder.2.neuron": []}
    mask = make_mask(checkpoint, kept, seq_len=8)
    manifest = optin_cli.prune(checkpoint, mask, tmp_path / "small", refit=str(texts))
    assert manifest.certificate.reloaded <= manifest.certificate.tolerance
    assert {"decoder.0.neuron", "decoder.1.neuron", "decoder.2.neuron"} <= set(manifest.refit)
    for name, found in manifest.refit.items():
        biased = checkpoint.model.get_submodule(checkpoint.structure.group(name).consumer).bias is not None
        assert (found.reason is None) == (biased or bool(mask.groups[name].kept)), name


def test_pruning_again(bert, texts, tmp_path):
    """A pruned folder is a checkpoint like any other: scored, cut and loaded; the two cuts add up."""
    once = make_mask(bert, {"encoder.0.head": [0, 2, 3], "encoder.1.head": [], "encoder.1.neuron": range(0, 40, 2)})
    optin_cli.prune(bert, once, tmp_path / "once")
    first = load_checkpoint(tmp_path / "once")
    scores = optin_cli.score(first, str(texts), options=OPTIONS)
    assert {name: group.units for name, group in scores.header.groups.items()}["encoder.0.head"] == 3
    mask = optin_cli.search(scores, Limits(keep_macs=0.7, protect=["*.head-dim"]))
    check(first, mask, tmp_path / "twice", optin_cli.prune(first, mask, tmp_path / "twice"))
    both = {
        name: [kept[u] for u in mask.groups[name].kept] for name, kept in kept_by(once).items() if name in mask.groups
    }
    both["encoder.1.head"] = []
    second = load_checkpoint(tmp_path / "twice")
    for mine, theirs in zip(outputs_of(second, second.model), outputs_of(bert, bert.model, both), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_keep_their_type(tmp_path, dtype):
    checkpoint = load_checkpoint(save_checkpoint(tmp_path / "whole", dtype=dtype))
    mask = make_mask(checkpoint, {"encoder.0.head": [1], "encoder.2.neuron": range(8)})
    manifest = optin_cli.prune(checkpoint, mask, tmp_path / "small")
    assert load_checkpoint(tmp_path / "small").dtype == dtype
    assert manifest.after.bytes < manifest.before.bytes < 4 * manifest.before.parameters
    check(checkpoint, mask, tmp_path / "small", manifest)
