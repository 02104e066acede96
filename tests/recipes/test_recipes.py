"""Every recipe on a tiny model: budgets, masks, determinism, adjustments; and the published steps on small cases."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.models import make_inputs, save_checkpoint
from helpers.running import Watch

from optin_cli.artifacts.base import Source, Workload
from optin_cli.artifacts.mask import GroupMask
from optin_cli.checkpoints.checkpoint import load as load_checkpoint
from optin_cli.data.batch import Batch
from optin_cli.errors import BudgetError, DataError
from optin_cli.model.costs import measure_costs
from optin_cli.model.masking import gated
from optin_cli.options.scoring import CRITERIA, ScoreOptions
from optin_cli.pruning.prune import cut_copy
from optin_cli.recipes.kprune import measure_knowledge, prune_upward, search_rest
from optin_cli.recipes.kwon import mask_gradients, objective, rearrange, rearrange_all, solve_masks, tune_masks
from optin_cli.recipes.recipe import Setting
from optin_cli.recipes.registry import recipes
from optin_cli.refit.residual_stream import consumer_calls, gather
from optin_cli.refit.ridge import Normal
from optin_cli.scoring.accumulate import SavedState
from optin_cli.scoring.baselines import fisher_batch, unit_energies, wanda_batch
from optin_cli.scoring.calibration import Calibration
from optin_cli.scoring.one_shot import score_checkpoint
from optin_cli.searching.choose import choose_units
from optin_cli.searching.costs import Costs
from optin_cli.searching.limits import Limits

torch.set_num_threads(1)

NAMES = sorted(recipes())
TUNING = ["kprune", "kwon", "optin", "random"]
OPTIONS = ScoreOptions(probes=1, exact_samples=4, rows=32)


def batches(count=4, rows=6, labelled=True, labels=None):
    made = []
    for number in range(count):
        keys = tuple(f"{number * rows + row:08x}.{number}" for row in range(rows))
        values = torch.arange(rows) % 2 if labels is None else labels
        made.append(Batch(make_inputs(rows, 9, seed=number, padding=2), values if labelled else None, keys))
    return made


def load(tmp_path_factory, family="bert", **options):
    folder = tmp_path_factory.mktemp("recipes") / family
    return load_checkpoint(save_checkpoint(folder, family, **({"num_labels": 2} | options)), device="cpu")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return load(tmp_path_factory)


@pytest.fixture(scope="module")
def costs(tiny):
    return measure_costs(tiny.model, tiny.structure, tiny.input.example(Workload(seq_len=16)), tiny.weight_bytes)


def setting_of(checkpoint, *, labelled=True, **options):
    data = batches(labelled=labelled, **options)
    calibration = Calibration(Source(name="data", sha256="a" * 64), data, data[:1])
    return Setting(checkpoint, calibration, OPTIONS, seq_len=16)


@pytest.fixture(scope="module")
def prepared(tiny):
    return {name: recipe.prepare(setting_of(tiny)) for name, recipe in recipes().items()}


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
    assert list(decision.kept) == list(groups)
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
def test_is_deterministic(tiny, prepared, name):
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
    assert tuned[next(iter(report))] <= plain[next(iter(report))] * (1 + 1e-6)
    assert sum(tuned.values()) < sum(plain.values())


@pytest.mark.parametrize("name", NAMES)
def test_labels_are_asked_for_where_needed(tiny, name):
    recipe, setting = recipes()[name], setting_of(tiny, labelled=False)
    if recipe.needs_labels:
        with pytest.raises(DataError, match="needs labels"):
            recipe.prepare(setting)
    else:
        assert recipe.prepare(setting)(Limits(keep_macs=0.7)).kept


@pytest.mark.parametrize("name", ["kprune", "kwon", "wanda"])
@pytest.mark.parametrize("family", ["albert", "deberta-v2", "distilbert"])
def test_runs_on_other_families(tmp_path_factory, family, name):
    layers = {"n_layers": 2} if family == "distilbert" else {"num_hidden_layers": 2}
    checkpoint = load(tmp_path_factory, family, **layers)
    decision = recipes()[name].prepare(setting_of(checkpoint))(Limits(keep_macs=0.7))
    model, _ = run(checkpoint, decision)
    with torch.no_grad():
        assert model(**make_inputs()).logits.isfinite().all()


@pytest.mark.parametrize("name", ["kprune", "kwon", "optin"])
def test_survives_groups_that_lose_every_unit(tiny, prepared, name):
    decision = prepared[name](Limits(keep_macs=0.1))
    assert any(not units for units in decision.kept.values())
    model, _ = run(tiny, decision)
    with torch.no_grad():
        assert model(**make_inputs()).logits.isfinite().all()


@pytest.mark.parametrize("name", ["kprune", "kwon", "optin"])
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_survives_groups_that_lose_every_unit_and_have_no_bias(tmp_path_factory, family, name):
    checkpoint = load(tmp_path_factory, family)
    for group in checkpoint.structure.groups:
        checkpoint.model.get_submodule(group.consumer).bias = None
    outcome = recipes()[name].prepare(setting_of(checkpoint))(Limits(keep_macs=0.2 if family == "bert" else 0.35))
    assert any(not units for units in outcome.kept.values())
    model, report = run(checkpoint, outcome)
    empty = {group: found for group, found in report.items() if not outcome.kept[group]}
    assert empty or name == "kwon", "which tunes masks, of which there is none"
    for found in empty.values():
        assert "no input column is left" in found.reason
        assert not found.kept and found.before == found.after > 0
    with torch.no_grad():
        assert model(**make_inputs()).logits.isfinite().all()


# Wanda


def test_wanda_is_the_squared_norms_by_hand(tiny):
    batch, layer = batches()[0], tiny.model.bert.encoder.layer[1]
    found = wanda_batch(tiny.model, tiny.structure, tiny.structure.groups, batch)
    for kind, consumer, block in [("head", layer.attention.output.dense, 8), ("neuron", layer.output.dense, 1)]:
        seen = []
        handle = consumer.register_forward_pre_hook(lambda _m, inputs, seen=seen: seen.append(inputs[0]))
        with torch.no_grad():
            tiny.model(**batch.inputs)
        handle.remove()
        x = seen[0].double()
        for row in range(batch.size):
            norms = x[row][batch.token_mask[row]].norm(dim=0)
            expected = (consumer.weight.double().abs() * norms).square().sum(dim=0).reshape(-1, block).sum(dim=1)
            torch.testing.assert_close(found[f"encoder.1.{kind}"][row], expected, rtol=1e-5, atol=1e-8)


def test_wanda_streams_and_resumes(tiny, tmp_path):
    calibration = setting_of(tiny, labelled=False).calibration
    options = replace(OPTIONS, criterion="wanda")
    assert not CRITERIA["wanda"].needs_labels
    whole = score_checkpoint(tiny, calibration, options, seq_len=16, state=SavedState(tmp_path / "whole"))

    def stop(done, total, _what):
        if done > total / 2:
            raise KeyboardInterrupt

    half = SavedState(tmp_path / "half", resume=True)
    with pytest.raises(KeyboardInterrupt):
        score_checkpoint(tiny, calibration, options, seq_len=16, state=half, progress=Watch(stop))
    resumed = score_checkpoint(tiny, calibration, options, seq_len=16, state=half)
    for name, values in whole.importance.items():
        assert np.array_equal(values, resumed.importance[name])
    assert {group.estimator for group in whole.header.groups.values()} == {"wanda"}
    assert all((error > 0).any() for error in whole.standard_error.values())


# Kwon


def random_fisher(units, seed, samples=None):
    rows = np.random.default_rng(seed).normal(size=(samples or units // 2, units))
    return rows.T @ rows


@pytest.mark.parametrize("seed", range(20))
def test_rearranging_never_raises_its_objective(seed):
    fisher, pruned = random_fisher(30, seed), list(range(seed % 15, seed % 15 + 12))
    found = rearrange(fisher, pruned)
    assert len(set(found)) == 12
    assert found == sorted(found)
    assert objective(fisher, found) <= objective(fisher, pruned)
    for out, back in itertools.product(found, set(range(30)) - set(found)):
        assert objective(fisher, sorted({*found, back} - {out})) >= objective(fisher, found) - 1e-9


def test_rearranging_finds_the_best_set_of_a_small_matrix():
    """Units 0 and 1 are cheap apart and dear together; pruned by their diagonal they would both go."""
    fisher = np.diag([1.0, 1.0, 2.0, 2.0, 5.0])
    fisher[0, 1] = fisher[1, 0] = 0.9
    fisher[0, 2] = fisher[2, 0] = -1.3
    best = min(itertools.combinations(range(5), 2), key=lambda pruned: objective(fisher, pruned))
    assert rearrange(fisher, [0, 1]) == list(best) == [0, 2]


@pytest.mark.parametrize("seed", range(10))
def test_rearranging_is_optimal_where_one_swap_reaches_every_set(seed):
    """With one unit left of all, swaps cannot get stuck in a local optimum, so brute force must agree."""
    fisher = random_fisher(6, seed)
    best = min(itertools.combinations(range(6), 5), key=lambda pruned: objective(fisher, pruned))
    assert rearrange(fisher, range(5)) == list(best)


@pytest.mark.parametrize("pruned", [[], [0, 1, 2]])
def test_nothing_to_rearrange(pruned):
    assert rearrange(random_fisher(3, 0), pruned) == pruned


def test_rearranged_masks_keep_their_sizes(tiny, costs, prepared):
    gradients = mask_gradients(setting_of(tiny))
    totals, groups = costs
    importance = {name: np.square(rows).mean(axis=0).astype(np.float32) for name, rows in gradients.items()}
    start = choose_units(importance, Costs(groups, totals), Limits(keep_macs=0.6), algorithm="optin")
    found = rearrange_all(start, gradients)
    assert {name: len(kept) for name, kept in found.items()} == {name: len(kept) for name, kept in start.items()}
    assert found == prepared["kwon"](Limits(keep_macs=0.6)).kept


def test_the_diagonal_of_the_fisher_matrix_is_the_fisher_criterion(tiny):
    gradients = mask_gradients(setting_of(tiny))
    parts = [fisher_batch(tiny.model, tiny.structure, tiny.structure.groups, batch) for batch in batches()]
    for name, rows in gradients.items():
        assert np.array_equal(np.square(rows), np.concatenate([part[name].numpy() for part in parts]))


@pytest.mark.parametrize("block", [1, 3])
@pytest.mark.parametrize("bias", [False, True])
def test_mask_tuning_recovers_known_scales(block, bias):
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([0.5, 2.0, -1.0, 1.0, 3.0], dtype=torch.float64)
    x = torch.randn(200, 5 * block, generator=generator, dtype=torch.float64)
    weight = torch.randn(5 * block, 4, generator=generator, dtype=torch.float64)
    shift = torch.randn(4, generator=generator, dtype=torch.float64) if bias else None
    y = (x * scales.repeat_interleave(block)) @ weight + (shift if shift is not None else 0.0)
    rows = torch.cat([x, torch.ones(200, 1, dtype=x.dtype)], dim=1) if bias else x
    normal = Normal.zeros(rows.shape[1], 4, x.device)
    normal.add(rows, y)
    torch.testing.assert_close(solve_masks(normal, weight, shift, block, damp=0.0), scales)
    held = solve_masks(normal, weight, shift, block, damp=1e7)
    torch.testing.assert_close(held, torch.ones_like(held), atol=1e-3, rtol=0)


def test_mask_tuning_is_the_damped_least_squares_of_its_equation():
    """Against the matrix of every unit's output, written out."""
    generator = torch.Generator().manual_seed(0)
    x, weight, y = (torch.randn(*size, generator=generator).double() for size in [(50, 6), (6, 4), (50, 4)])
    normal = Normal.zeros(6, 4, x.device)
    normal.add(x, y)
    columns = torch.stack([(x[:, u : u + 2] @ weight[u : u + 2]).flatten() for u in (0, 2, 4)], dim=1)
    tall = torch.cat([columns.T @ columns, torch.eye(3, dtype=x.dtype)])
    right = torch.cat([columns.T @ (y.flatten() - columns.sum(dim=1)), torch.zeros(3, dtype=x.dtype)])
    expected = 1 + torch.linalg.lstsq(tall, right[:, None]).solution[:, 0]
    torch.testing.assert_close(solve_masks(normal, weight, None, 2), expected)


def test_mask_tuning_stops_where_a_value_is_out_of_bounds(tiny, prepared, monkeypatch):
    kept = prepared["kwon"](Limits(keep_macs=0.6)).kept
    model, _ = cut_copy(tiny, kept)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    monkeypatch.setattr("optin_cli.recipes.kwon.BOUND", 1e-3)
    report = tune_masks(setting_of(tiny), model, kept)
    assert [refit.kept for refit in report.values()] == [False]
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


# K-prune


def test_representational_knowledge_is_the_change_of_the_output(tiny):
    batch, structure = batches()[0], tiny.structure
    with torch.no_grad(), unit_energies(tiny.model, structure.groups, batch, mixed=True) as found:
        tiny.model(**batch.inputs)
    for group in structure.groups[:2]:
        whole = gather(tiny.model, tiny.structure, group, batch, 1)[0].out
        for unit in (0, group.units - 1):
            gate = torch.ones(group.units)
            gate[unit] = 0.0
            with gated(tiny.model, {group: gate}):
                without = gather(tiny.model, tiny.structure, group, batch, 1)[0].out
            change = ((whole - without) * batch.token_mask[..., None]).double().square().sum(dim=(1, 2))
            torch.testing.assert_close(found[group.name][:, unit], change, rtol=1e-4, atol=1e-7)


def test_the_search_above_spends_what_is_left(tiny, costs):
    totals, groups = costs
    importance = measure_knowledge(setting_of(tiny), tiny.model, tiny.structure.groups)
    for limits in (Limits(keep_macs=0.5), Limits(keep_macs=0.6, keep_parameters=0.7)):
        whole = search_rest(importance, Costs(groups, totals), limits, {})
        done = {}
        for name in groups:
            found = search_rest(importance, Costs(groups, totals), limits, done)
            assert list(found) == [n for n in groups if n not in done]
            assert found == {n: whole[n] for n in found}
            done[name] = found[name]


def test_what_the_first_sublayers_free_goes_to_the_later_ones(tiny, costs):
    totals, groups = costs
    importance = measure_knowledge(setting_of(tiny), tiny.model, tiny.structure.groups)
    first = {name: [] for name in list(groups)[:2]}
    more = search_rest(importance, Costs(groups, totals), Limits(keep_macs=0.5), first)
    less = search_rest(importance, Costs(groups, totals), Limits(keep_macs=0.5), {})
    assert sum(len(more[n]) for n in more) > sum(len(less[n]) for n in more)
    assert Costs(groups, totals).remaining(first | more)["macs"] <= 0.5


def test_a_whole_budget_changes_nothing(tiny, costs):
    totals, groups = costs
    setting = setting_of(tiny)
    importance = measure_knowledge(setting, tiny.model, tiny.structure.groups)
    kept, report, tuned = prune_upward(setting, importance, Costs(groups, totals), Limits(keep_macs=1.0))
    assert all(len(units) == groups[name].units for name, units in kept.items())
    assert report == tuned == {}
