"""Refit of pruned models of every text family, and through the command line."""

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from helpers.models import DECODERS, FAMILIES, IMAGES, batch_of, build, make_batch, make_pixels, structure_of
from helpers.running import done
from transformers.pytorch_utils import Conv1D

from optin_cli.data.batch import Batch
from optin_cli.errors import DataError
from optin_cli.model.cut import PrunedModel, added_biases, cut
from optin_cli.model.forward import call_model
from optin_cli.model.modeling_optin import apply_plan
from optin_cli.options.refit import RefitOptions
from optin_cli.refit import design_matrix as consumers
from optin_cli.refit import refit
from optin_cli.refit import residual_stream as residuals
from optin_cli.refit import ridge as least_squares
from optin_cli.refit.batch_norm import following_norms


def read_json(path):
    return json.loads(Path(path).read_text())


@pytest.mark.parametrize("bias", [False, True])
def test_an_input_without_columns_leaves_nothing_but_the_bias(bias):
    normal = least_squares.Normal.zeros(int(bias), 2, torch.device("cpu"))
    normal.add(torch.ones(4, int(bias)).double(), torch.tensor([[2.0, 3.0]]).double().expand(4, -1))
    start = torch.zeros(int(bias), 2, dtype=torch.float64)
    solution = least_squares.solve_ridge(normal, start, 1e-3, bias=bias)
    assert solution.shape == (int(bias), 2)
    assert normal.error(solution) == pytest.approx(0.0 if bias else 13.0, abs=1e-6)


def without_biases(model, structure):
    """The model, whose consumers then have no bias."""
    for group in structure.groups:
        if not isinstance(consumer := model.get_submodule(group.consumer), Conv1D):  # which cannot do without
            consumer.bias = None
    return model


def allowed(group):
    """The fewest units that a group may keep, one, half and all of them."""
    return sorted({group.least, max(group.least, 1), max(group.least, group.units // 2), group.units})


def deal(structure, turn):
    """Every group another of its counts, which change from turn to turn; at turn -1 all keep as few as they can."""
    kept = {}
    for number, group in enumerate(structure.groups):
        counts = allowed(group)
        kept[group.name] = list(range(counts[0] if turn < 0 else counts[(number + turn) % len(counts)]))
    return kept


def inputs_of(model, family, rows=12):
    pixels = family in IMAGES
    inputs = make_pixels(model, rows, seed=1) if pixels else make_batch(rows, 6, padding=2, seed=1).inputs
    return Batch(inputs, None, tuple(f"sample {row}" for row in range(rows)))


BIASES = {"as built": False, "no bias": False, "bias added": True}
"""Whether refit may add biases, by what the consumers have."""

TWINS = {"xlm-roberta", "albert-2-groups", "deberta-v2-shared", "deit-distilled", "beit-shared", "dinov2-registers"}

TWINS |= {"qwen3", "mistral", "gemma3"}

TWINS |= {"timm-deit", "timm-dinov2", "timm-beit-shared", "timm-mobilenetv2", "timm-vgg"}
"""Models whose groups are described by the very rules of another one's."""

DEALT = [("no bias", -1), ("as built", 0), ("bias added", 1), ("bias added", -1), ("no bias", 2)]


@pytest.mark.parametrize("family", [name for name in (*FAMILIES, *DECODERS, *IMAGES) if name not in TWINS])
def test_every_allowed_count_of_units_can_be_refitted(family):
    """With and without biases: every consumer behind the first pruned group is solved, or the record says why not."""
    many = len(structure_of(build(family)).groups) > 8  # and then several groups of each kind have each count
    wide = family == "timm-vgg-bn"  # whose first dense layer has 25,088 inputs, most of them of the last channels
    for biases, turn in DEALT[:1] if wide else DEALT[:3] if many else DEALT:
        original = build(family)
        if biases != "as built":
            without_biases(original, structure_of(original))
        structure = structure_of(original)
        kept = deal(structure, turn)
        model = copy.deepcopy(original)
        cut(model, structure, kept)
        shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
        pruned = {group.name: model.get_submodule(group.consumer) for group in structure.groups}
        solvable = {name: consumers.why_not(module, biased=True) is None for name, module in pruned.items()}
        batch = inputs_of(original, family)
        options = RefitOptions(add_bias=BIASES[biases])
        report = refit.refit_model(PrunedModel(original, model, structure, kept), [batch], options)
        report.pop(refit.BATCH_NORM, None)
        norms = following_norms(original, structure, batch)
        order = list(residuals.consumer_calls(original, structure, batch))
        first = next(number for number, group in enumerate(order) if len(kept[group.name]) < group.units)
        assert list(report) == [group.name for group in order[first:]]
        for name, found in report.items():
            group = structure.group(name)
            bias = getattr(original.get_submodule(group.consumer), "bias", None) is not None
            given = BIASES[biases] or group.consumer in norms
            assert (found.reason is None) == (solvable[name] and (bool(kept[name]) or bias or given))
            assert found.reason is None or "no input column" in found.reason or not solvable[name]
            assert math.isfinite(found.before) and math.isfinite(found.after)
            assert found.after < found.before if found.kept else found.after >= found.before
            assert found.reason is None or (found.before == found.after >= 0 and not found.kept)
        now = {name: tensor.shape for name, tensor in model.state_dict().items()}
        assert {name: now[name] for name in shapes} == shapes
        solved = {structure.group(name).consumer for name, found in report.items() if found.kept} - set(norms)
        added = {f"{consumer}.bias" for consumer in solved} - set(shapes)
        assert set(now) - set(shapes) == (added if BIASES[biases] else set())
        with torch.no_grad():
            outputs = call_model(model, batch.inputs)
        assert all(value.isfinite().all() for value in outputs.values() if isinstance(value, torch.Tensor))


@pytest.mark.parametrize("family", FAMILIES)
class TestEveryFamily:
    def cut(self, family, kept_of):
        original = build(family)
        structure = structure_of(original, "classes")
        kept = {group.name: kept_of(group) for group in structure.groups}
        model = copy.deepcopy(original)
        cut(model, structure, kept)
        return original, model, structure, kept, [batch_of(rows=8, seed=seed) for seed in range(4)]

    def test_the_residual_stream_comes_closer(self, family):
        original, model, structure, kept, batches = self.cut(family, lambda g: list(range(0, g.units, 2)))
        before = {name: p.clone() for name, p in model.named_parameters()}
        report = refit.refit_model(PrunedModel(original, model, structure, kept), batches)
        assert set(report) == set(kept)
        assert any(r.kept for r in report.values())
        assert all(r.after < r.before for r in report.values() if r.kept)
        changed = {n.rpartition(".")[0] for n, p in model.named_parameters() if not torch.equal(p, before[n])}
        assert changed == {structure.group(name).consumer for name, r in report.items() if r.kept}

    def test_a_layer_without_heads_gets_a_bias(self, family):
        original, model, structure, kept, batches = self.cut(
            family, lambda g: [] if g.kind == "head" else list(range(g.units))
        )
        report = refit.refit_model(PrunedModel(original, model, structure, kept), batches)
        assert all(r.after < r.before for r in report.values() if r.kept)

    def test_nothing_cut_is_nothing_changed(self, family):
        original, model, structure, kept, batches = self.cut(family, lambda g: list(range(g.units)))
        assert refit.refit_model(PrunedModel(original, model, structure, kept), batches) == {}


def test_hooks_are_gone_afterwards():
    original = build("bert")
    structure = structure_of(original, "classes")
    residuals.gather(original, structure, structure.groups[0], batch_of(), 1)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in original.modules())


def test_too_few_samples_are_refused():
    original = build("bert")
    structure = structure_of(original, "classes")
    batch = batch_of(rows=1)
    with pytest.raises(DataError, match="Too few calibration samples"):
        refit.refit_model(PrunedModel(original, original, structure, {structure.groups[0].name: []}), [batch])


@pytest.mark.parametrize("family", ["bert", "llama", "vit", "resnet"])
def test_a_model_of_zeros_has_nothing_to_solve(family):
    original = build(family)
    for parameter in original.parameters():
        parameter.data.zero_()
    structure = structure_of(original)
    kept = {g.name: list(range(0, g.units, 2)) for g in structure.groups}
    model = copy.deepcopy(original)
    cut(model, structure, kept)
    batches = [inputs_of(original, family)]
    report = refit.refit_model(PrunedModel(original, model, structure, kept), batches)
    assert report and {(one.before, one.after, one.kept) for one in report.values()} == {(0.0, 0.0, False)}


def test_prune_refits_and_records_it(made, here):
    common = ("prune", made.bert, "--mask", made.mask, "--calib", made.texts)
    done(*common, "-o", "refit")
    manifest = read_json("refit/optin.json")
    assert manifest["inputs"]["calibration"]["name"] == "texts.jsonl"
    assert all(set(r) == {"before", "after", "ridge", "kept", "reason"} for r in manifest["refit"].values())
    done(*common, "--refit-ridge", "0.5", "-o", "ridge")
    ridges = {name: r["ridge"] for name, r in read_json("ridge/optin.json")["refit"].items()}
    assert {ridge for name, ridge in ridges.items() if not name.endswith(".head-dim")} == {0.5}
    done(*common, "--no-refit", "-o", "plain")
    assert read_json("plain/optin.json")["refit"] is None


@pytest.mark.parametrize("add", [False, True])
def test_layers_without_bias_get_one_only_when_asked(add):
    original = build("bert")
    for block in original.bert.encoder.layer:
        block.output.dense.bias = None
    structure = structure_of(original)
    kept = {g.name: list(range(0, g.units, 2)) for g in structure.groups}
    model = copy.deepcopy(original)
    plan = cut(model, structure, kept)
    pruned = PrunedModel(original, model, structure, kept)
    report = refit.refit_model(pruned, [batch_of(16)], RefitOptions(add_bias=add))
    added = added_biases(original, model, structure)
    taken = {f"{structure.group(name).consumer}.bias" for name, r in report.items() if r.kept and "neuron" in name}
    assert set(added.parameters) == (taken if add else set())
    assert taken
    rebuilt = apply_plan(copy.deepcopy(original), plan.then(added).model_dump())
    rebuilt.load_state_dict(model.state_dict())
    inputs = batch_of().inputs
    with torch.no_grad():
        torch.testing.assert_close(rebuilt(**inputs).logits, model(**inputs).logits)
