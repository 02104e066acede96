"""Score, search, prune and load through the Python API: every family and head gives what the masked model gave."""

import json
import random
from dataclasses import replace

import pytest
import torch
from helpers.models import DECODERS, FAMILIES, HEADS, make_inputs, save_checkpoint
from helpers.running import write_rows

import optin_cli
from optin_cli.artifacts.base import parse
from optin_cli.artifacts.manifest import Manifest
from optin_cli.artifacts.mask import Budget, GroupMask, Mask
from optin_cli.checkpoints.checkpoint import load as load_checkpoint
from optin_cli.model.masking import masked
from optin_cli.options.evaluation import EvalOptions
from optin_cli.options.scoring import ScoreOptions
from optin_cli.searching.limits import Limits

OPTIONS = ScoreOptions(samples=4, probes=1, batch_size=4, max_length=24)
CASES = [
    *((family, "classes") for family in FAMILIES),
    *(("bert", head) for head in HEADS if head != "classes"),
    *((family, "next") for family in DECODERS),
]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    draw = random.Random(1)
    rows = [{"text": " ".join(draw.choices("abcdefghijklmnopqrst", k=draw.randint(3, 9)))} for _ in range(6)]
    return write_rows(tmp_path_factory.mktemp("texts") / "texts.jsonl", rows)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return load_checkpoint(save_checkpoint(tmp_path_factory.mktemp("bert") / "bert"))


def outputs_of(checkpoint, model, kept=None):
    """The outputs that the head is judged by, at real tokens."""
    inputs = make_inputs(3, 12)
    with torch.no_grad(), masked(model, checkpoint.structure, kept or {}):
        found = model(**inputs)
    tensors = [found[rule.name] for rule in checkpoint.structure.outputs]
    real = inputs["attention_mask"].bool()
    return [t[real] if t.shape[:2] == real.shape else t for t in tensors]


def kept_by(mask):
    return {name: group.kept for name, group in mask.groups.items()}


def make_mask(checkpoint, **kept):
    """A mask that a person wrote: groups by name (with _ for .), all units where none are named."""
    named = {name.replace("_", "."): list(units) for name, units in kept.items()}
    groups = {
        g.name: GroupMask(units=g.units, kept=named.pop(g.name, list(range(g.units))))
        for g in checkpoint.structure.groups
    }
    assert not named
    return Mask(
        optin_version=optin_cli.__version__,
        options={},
        inputs={"checkpoint": checkpoint.source},
        workload={"seq_len": 32},
        budget=Budget(asked={}, reached={}),
        importance_lost=0.0,
        groups=groups,
    )


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
    assert set(scores.importance) == {group.name for group in checkpoint.structure.groups}
    mask = optin_cli.search(scores, Limits(keep_macs=0.6))
    manifest = optin_cli.prune(checkpoint, mask, tmp_path / "small")
    pruned = check(checkpoint, mask, tmp_path / "small", manifest)
    assert isinstance(optin_cli.load(tmp_path / "small").model, torch.nn.Module)
    assert optin_cli.profile(pruned).totals == manifest.after
    assert pruned.input.tokenizer()("a b")["input_ids"] == checkpoint.input.tokenizer()("a b")["input_ids"]


@pytest.mark.parametrize("family", ["bert", "distilbert", "deberta-v2", "albert-2-groups"])
def test_layers_without_heads_or_neurons(tmp_path, family):
    checkpoint = load_checkpoint(save_checkpoint(tmp_path / "whole", family))
    heads, neurons = ([g.name for g in checkpoint.structure.groups if g.kind == kind] for kind in ("head", "neuron"))
    kept = {heads[0]: [], neurons[-1]: [], heads[-1]: [1], neurons[0]: [0, 2, 39]}
    mask = make_mask(checkpoint, **{name.replace(".", "_"): units for name, units in kept.items()})
    check(checkpoint, mask, tmp_path / "small", optin_cli.prune(checkpoint, mask, tmp_path / "small"))


@pytest.mark.parametrize("family", DECODERS)
def test_refit_where_layers_without_bias_keep_no_unit(tmp_path, family):
    texts = write_rows(tmp_path / "texts.jsonl", [{"text": f"{a} {b} good"} for a in "abcde" for b in "fghij"])
    checkpoint = load_checkpoint(save_checkpoint(tmp_path / "whole", family, "next"))
    mask = make_mask(checkpoint, decoder_0_neuron=[], decoder_1_neuron=[3], decoder_2_neuron=[])
    manifest = optin_cli.prune(checkpoint, mask, tmp_path / "small", refit=str(texts))
    assert manifest.certificate.reloaded <= manifest.certificate.tolerance
    assert {"decoder.0.neuron", "decoder.1.neuron", "decoder.2.neuron"} <= set(manifest.refit)
    for name, found in manifest.refit.items():
        assert (found.reason is None) == bool(mask.groups[name].kept), name


def test_pruning_again(bert, texts, tmp_path):
    """A pruned folder is a checkpoint like any other: scored, cut and loaded; the two cuts add up."""
    once = make_mask(bert, encoder_0_head=[0, 2, 3], encoder_1_head=[], encoder_1_neuron=range(0, 40, 2))
    optin_cli.prune(bert, once, tmp_path / "once")
    first = load_checkpoint(tmp_path / "once")
    scores = optin_cli.score(first, str(texts), options=OPTIONS)
    assert {name: group.units for name, group in scores.header.groups.items()}["encoder.0.head"] == 3
    mask = optin_cli.search(scores, Limits(keep_macs=0.7))
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
    mask = make_mask(checkpoint, encoder_0_head=[1], encoder_2_neuron=range(8))
    manifest = optin_cli.prune(checkpoint, mask, tmp_path / "small")
    assert load_checkpoint(tmp_path / "small").dtype == dtype
    assert manifest.after.bytes < manifest.before.bytes < 4 * manifest.before.parameters
    check(checkpoint, mask, tmp_path / "small", manifest)


@pytest.mark.parametrize("estimator", ["obs", "sketch", "exact", "hybrid"])
def test_estimators_and_their_records(bert, texts, estimator):
    options = replace(OPTIONS, estimator=estimator, exact_samples=2, rows=64)
    scores = optin_cli.score(bert, str(texts), options=options)
    used = {name: (group.estimator, group.samples) for name, group in scores.header.groups.items()}
    expected = {"head": (estimator, 4) if estimator in ("obs", "sketch") else ("exact", 2)}
    expected["neuron"] = ("exact", 2) if estimator == "exact" else ("obs" if estimator == "obs" else "sketch", 4)
    assert used == {g.name: expected[g.kind] for g in bert.structure.groups}
    assert set(scores.standard_error) == set(scores.importance)
    assert all((values >= 0).all() and values.any() for values in scores.importance.values())


@pytest.mark.parametrize("criterion", ["magnitude", "random"])
def test_criteria_without_data(bert, criterion):
    scores = optin_cli.score(bert, options=ScoreOptions(criterion=criterion))
    mask = optin_cli.search(scores, Limits(keep_macs=0.5, keep_parameters=0.9, round_to=8, minima={"head": 1}))
    assert mask.budget.reached["macs"] <= 0.5 and mask.budget.reached["parameters"] <= 0.9
    assert all(len(g.kept) % 8 == 0 for name, g in mask.groups.items() if name.endswith("neuron"))
    assert all(g.kept for name, g in mask.groups.items() if name.endswith("head"))


def test_options_fit_short_models(bert, texts):
    """The default length is what the model holds: 48 tokens here."""
    assert optin_cli.score(bert, str(texts), options=ScoreOptions(samples=4, probes=1)).importance


def test_evaluation_of_a_pruned_model_against_its_original(bert, texts, tmp_path):
    """Distances of what both put out for each text alone; sizes as the manifest has them."""
    mask = make_mask(bert, encoder_0_head=[1], encoder_1_neuron=range(4), encoder_2_head=[])
    manifest = optin_cli.prune(bert, mask, tmp_path / "small")
    small = load_checkpoint(tmp_path / "small")
    options = EvalOptions(latency_runs=0, seq_len=32, batch_size=4)
    found = optin_cli.evaluate(small, data=texts, against=bert, options=options).against
    rows = [json.loads(line)["text"] for line in texts.read_text().splitlines()]
    tokenizer = bert.tokenizer()
    with torch.no_grad():
        mine, theirs = (
            torch.cat([c.model(**tokenizer(text, return_tensors="pt")).logits.log_softmax(dim=-1) for text in rows])
            for c in (small, bert)
        )
    assert found.agreement == pytest.approx((mine.argmax(dim=-1) == theirs.argmax(dim=-1)).float().mean().item())
    assert found.kl == pytest.approx((theirs.exp() * (theirs - mine)).sum(dim=-1).mean().item(), rel=1e-3)
    assert found.kl > 1e-3
    assert found.macs_ratio == manifest.after.macs / manifest.before.macs < 1
    assert found.parameters_ratio == manifest.after.parameters / manifest.before.parameters < 1
