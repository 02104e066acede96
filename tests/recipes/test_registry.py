"""Every recipe on a tiny model: budgets, masks, determinism, adjustments."""

import pytest
import torch
from helpers.models import make_inputs
from helpers.recipes import batches, setting_of, tiny_checkpoint

from optin_cli.artifacts.costs import BLOCK, HEAD_DIM
from optin_cli.artifacts.mask import GroupMask
from optin_cli.errors import BudgetError, DataError
from optin_cli.pruning.prune import cut_copy
from optin_cli.recipes.registry import recipes
from optin_cli.refit.residual_stream import consumer_calls, gather
from optin_cli.searching.costs import Costs
from optin_cli.searching.limits import Limits

torch.set_num_threads(1)

NAMES = sorted(recipes())

TUNING = ["kprune", "kwon", "optin", "random"]


def run(checkpoint, decision):
    """The cut model after the decision's adjustment, and what the adjustment told."""
    model, _ = cut_copy(checkpoint, decision.kept)
    return model, decision.adjust(model) if decision.adjust else {}


def errors(original, model, structure, data):
    """Squared distance of the residual stream behind every consumer from the original's, by group name."""
    found = {}
    for group, calls in consumer_calls(original, structure, data[0]).items():
        total = 0.0
        for batch in data:
            mine, theirs = ([c.total for c in gather(m, structure, group, batch, calls)] for m in (model, original))
            pairs = zip(mine, theirs, strict=True)
            total += sum(float((a - b).detach()[batch.token_mask].double().square().sum()) for a, b in pairs)
        found[group.name] = total
    return found


# Every recipe


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("share", [0.85, 0.6])
def test_meets_the_budget_with_a_valid_mask(tiny, costs, prepared, name, share):
    totals, groups = costs
    decision = prepared[name](Limits(keep_macs=share))
    others = {BLOCK} if name == "optin" else {BLOCK, HEAD_DIM}
    scored = [n for n, group in groups.items() if group.kind not in others]
    assert list(decision.kept) == scored
    for group, kept in decision.kept.items():
        GroupMask(units=groups[group].units, kept=kept)
    assert share - 0.1 < Costs(groups, totals).remaining(decision.kept)["macs"] <= share
    model, report = run(tiny, decision)
    assert set(report) <= set(groups)
    with torch.no_grad():
        assert model(**make_inputs()).logits.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_respects_minima_rounding_and_protected_groups(costs, prepared, name):
    totals, groups = costs
    limits = Limits(keep_macs=0.8, round_to=8, minima={"head": 1, "neuron": 8}, protect=["encoder.0.*"])
    kept = prepared[name](limits).kept
    assert Costs(groups, totals).remaining(kept)["macs"] <= 0.8
    for group, units in kept.items():
        assert units and len(units) * groups[group].unit_width % 8 == 0
        assert len(units) == groups[group].units or not group.startswith("encoder.0.")


@pytest.mark.parametrize("name", NAMES)
def test_an_unreachable_budget_is_refused(prepared, name):
    with pytest.raises(BudgetError, match="smallest reachable share"):
        prepared[name](Limits(keep_macs=0.0001))


@pytest.mark.parametrize("name", NAMES)
def test_equal_preparations_give_equal_bits(tiny, prepared, name):
    """A second preparation, after others ran, decides and adjusts to the same bits."""
    limits = Limits(keep_macs=0.6)
    decisions = [prepared[name](limits), recipes()[name].prepare(setting_of(tiny))(limits)]
    (one, report), (two, again) = (run(tiny, decision) for decision in decisions)
    assert decisions[0].kept == decisions[1].kept
    assert report == again
    for key, tensor in one.state_dict().items():
        assert torch.equal(tensor, two.state_dict()[key]), key


@pytest.mark.parametrize("name", NAMES)
def test_leaves_the_original_and_all_shapes_alone(tiny, prepared, name):
    before = {key: tensor.clone() for key, tensor in tiny.model.state_dict().items()}
    decision = prepared[name](Limits(keep_macs=0.6))
    fresh, _ = cut_copy(tiny, decision.kept)
    adjusted, _ = run(tiny, decision)
    assert {k: t.shape for k, t in adjusted.state_dict().items()} == {k: t.shape for k, t in fresh.state_dict().items()}
    assert all(torch.equal(tensor, before[key]) for key, tensor in tiny.model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in tiny.model.modules())


@pytest.mark.parametrize("name", TUNING)
def test_adjusting_does_not_raise_the_reconstruction_error(tiny, prepared, name):
    """The first consumer adjusted gets the same inputs either way, so it must not lose; nor must all together."""
    decision = prepared[name](Limits(keep_macs=0.6))
    fresh, _ = cut_copy(tiny, decision.kept)
    adjusted, report = run(tiny, decision)
    assert report
    plain, tuned = (errors(tiny.model, model, tiny.structure, batches()) for model in (fresh, adjusted))
    first = next(group for group in report if group in plain)
    assert tuned[first] <= plain[first] * (1 + 1e-6)
    assert sum(tuned.values()) < sum(plain.values())


@pytest.mark.parametrize("name", NAMES)
def test_labels_are_asked_for_where_needed(tiny, name):
    recipe, setting = recipes()[name], setting_of(tiny, labelled=False)
    if recipe.needs_labels:
        with pytest.raises(DataError, match="needs labels"):
            recipe.prepare(setting)
    else:
        assert recipe.prepare(setting)(Limits(keep_macs=0.7)).kept


@pytest.mark.parametrize("name", ["flap", "kprune", "kwon", "wanda"])
@pytest.mark.parametrize("family", ["albert", "deberta-v2", "distilbert", "gpt2"])
def test_recipes_run_on_other_families(tmp_path_factory, family, name):
    layers = {"n_layers": 2} if family == "distilbert" else {"num_hidden_layers": 2}
    checkpoint = tiny_checkpoint(tmp_path_factory, family, **layers)
    decision = recipes()[name].prepare(setting_of(checkpoint))(Limits(keep_macs=0.7))
    model, _ = run(checkpoint, decision)
    with torch.no_grad():
        assert model(**make_inputs()).logits.isfinite().all()


@pytest.mark.parametrize("name", ["flap", "kprune", "kwon", "optin"])
def test_survives_groups_that_lose_every_unit(tiny, prepared, name):
    decision = prepared[name](Limits(keep_macs=0.1))
    assert any(not units for units in decision.kept.values())
    model, _ = run(tiny, decision)
    with torch.no_grad():
        assert model(**make_inputs()).logits.isfinite().all()


SMALLEST = {"bert": 0.1, "llama": 0.1315}
"""Shares of MACs at which groups lose all units, whatever the recipe; Llama cannot go below 0.1314."""


@pytest.mark.parametrize("name", ["kprune", "kwon", "optin"])
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_survives_groups_that_lose_every_unit_and_have_no_bias(tmp_path_factory, family, name):
    checkpoint = tiny_checkpoint(tmp_path_factory, family)
    for group in checkpoint.structure.groups:
        checkpoint.model.get_submodule(group.consumer).bias = None
    outcome = recipes()[name].prepare(setting_of(checkpoint))(Limits(keep_macs=SMALLEST[family]))
    assert any(not units for units in outcome.kept.values())
    model, report = run(checkpoint, outcome)
    empty = {group: found for group, found in report.items() if not outcome.kept[group]}
    assert empty or name == "kwon", "which tunes masks, of which there is none"
    for found in empty.values():
        assert "no input column is left" in found.reason
        assert not found.kept and found.before == found.after > 0
    with torch.no_grad():
        assert model(**make_inputs()).logits.isfinite().all()
