"""Kwon et al.: rearrangement of masks by the Fisher matrix, and mask tuning."""

import itertools

import numpy as np
import pytest
import torch
from helpers.recipes import batches, setting_of

from optin_cli.pruning.prune import cut_copy
from optin_cli.recipes.kwon import mask_gradients, rearrange, rearrange_all, solve_masks, tune_masks
from optin_cli.refit.ridge import Normal
from optin_cli.scoring.baselines import fisher_batch
from optin_cli.searching.choose import choose_units
from optin_cli.searching.costs import Costs
from optin_cli.searching.limits import Limits


def objective(fisher, pruned):
    """Second-order cost of pruning these units: 1/2 (1 - m)^T I (1 - m)."""
    return 0.5 * float(fisher[np.ix_(list(pruned), list(pruned))].sum())


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


def test_rearranged_masks_keep_their_sizes(tiny, slice_costs, prepared):
    gradients = mask_gradients(setting_of(tiny))
    totals, groups = slice_costs
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
