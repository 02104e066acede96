"""Removal curves against what they stand for: least squares solved afresh for every set of units."""

import itertools

import pytest
import torch

from optin_cli.scoring import curves
from optin_cli.scoring.curves import curve_importance, lone_losses, pooled, ridge_inverse, typical_ratio

DAMPING = 0.01


def removal_curve(*matrices, damping=DAMPING, **options):
    return curves.removal_curve(*matrices, damping=damping, **options)


def problem(columns=8, outputs=5, rows=60, seed=0, rank=None):
    """(H, G, W) of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x = draw(rows, rank or columns) @ draw(rank or columns, columns)
    g = draw(rows, outputs) @ draw(outputs, outputs)
    return x.T @ x / rows, g.T @ g / rows, draw(outputs, columns)


def solved_loss(H, G, W, gone, ridge):  # noqa: N803 - the names of the equations
    """tr(G D (H + mu I) D^T) of the best change D that sets the columns `gone` to zero, solved directly."""
    mu = ridge * H.diagonal().mean()
    damped = H + mu * torch.eye(len(H), dtype=H.dtype)
    stay = [c for c in range(len(H)) if c not in gone]
    change = torch.zeros_like(W)
    change[:, gone] = -W[:, gone]
    if stay:
        right = -change[:, gone] @ damped[gone][:, stay]
        change[:, stay] = torch.linalg.solve(damped[stay][:, stay], right.T).T
    return float(torch.trace(G @ change @ damped @ change.T))


def columns_of(units, width):
    return [unit * width + c for unit in units for c in range(width)]


@pytest.mark.parametrize("width", [1, 2, 3])
@pytest.mark.parametrize("panel", [1, 4, 64])
def test_running_sums_are_the_losses_of_least_squares(width, panel):
    H, G, W = problem(12)
    curve = removal_curve(H, G, W, width=width, damping=0.02, panel=panel)
    assert sorted(curve.order.tolist()) == list(range(12 // width))
    for count in range(1, 12 // width + 1):
        gone = columns_of(curve.order[:count].tolist(), width)
        assert float(curve.losses[:count].sum()) == pytest.approx(solved_loss(H, G, W, gone, 0.02))


@pytest.mark.parametrize("width", [1, 2])
def test_every_step_takes_the_cheapest_unit(width):
    H, G, W = problem(10, seed=1)
    curve = removal_curve(H, G, W, width=width)
    order = curve.order.tolist()
    for count, unit in enumerate(order):
        costs = {u: solved_loss(H, G, W, columns_of([*order[:count], u], width), 0.01) for u in order[count:]}
        assert unit == min(costs, key=costs.get)


def test_the_order_is_close_to_the_best_sets():
    ratios = []
    for seed in range(20):
        H, G, W = problem(8, seed=seed)
        curve = removal_curve(H, G, W)
        best = min(solved_loss(H, G, W, list(gone), 0.01) for gone in itertools.combinations(range(8), 4))
        ratios.append(float(curve.losses[:4].sum()) / best)
    assert min(ratios) >= 1 - 1e-9
    assert sum(ratios) / len(ratios) < 1.1


@pytest.mark.parametrize("panel", [8, 64, 1000])
def test_panels_do_not_change_the_order(panel):
    H, G, W = problem(150, outputs=20, rows=100, seed=2)
    exact, batched = (removal_curve(H, G, W, panel=size) for size in (1, panel))
    assert exact.order.tolist() == batched.order.tolist()
    torch.testing.assert_close(exact.losses, batched.losses, rtol=1e-7, atol=0)


def test_a_copy_of_a_column_goes_for_the_price_of_the_ridge():
    H, G, W = problem(6, seed=3)
    source = [0, 1, 2, 3, 4, 5, 2]
    H, W = H[source][:, source], W[:, source]
    curve = removal_curve(H, G, W, damping=1e-6)
    assert int(curve.order[0]) in (2, 6)
    assert float(curve.losses[0]) < 1e-5 * float(curve.losses.sum())
    assert float(curve.losses[1]) > 100 * float(curve.losses[0])


def test_without_correlation_the_loss_is_what_the_unit_puts_out():
    _, G, W = problem(6, seed=4)
    energies = torch.arange(1, 7, dtype=torch.float64)
    curve = removal_curve(torch.diag(energies), G, W, damping=1e-9)
    alone = energies * (W.T @ G @ W).diagonal()
    assert curve.order.tolist() == alone.argsort().tolist()
    torch.testing.assert_close(curve.losses, alone.sort().values, rtol=1e-6, atol=0)


@pytest.mark.parametrize("width", [1, 2])
def test_a_unit_that_goes_alone_costs_its_own_output(width):
    H, G, W = problem(6)
    outputs = [W[:, columns_of([unit], width)] for unit in range(6 // width)]
    moments = [H[unit * width : (unit + 1) * width, unit * width : (unit + 1) * width] for unit in range(6 // width)]
    expected = torch.stack([torch.trace(G @ w @ h @ w.T) for w, h in zip(outputs, moments, strict=True)])
    torch.testing.assert_close(lone_losses(H, G, W, width=width), expected)


def test_few_units_do_not_decide_the_typical_ratio():
    modelled = torch.tensor([1.0, 1.0, 1.0, 5.0, 0.0])
    assert typical_ratio(torch.tensor([2.0, 2.0, 1000.0, 10.0, 7.0]), modelled) == 2.0
    assert typical_ratio(torch.zeros(5), modelled) == 1.0
    assert typical_ratio(torch.zeros(0), torch.zeros(0)) == 1.0


def test_outputs_that_do_not_matter_cost_nothing():
    H, _, W = problem(6, seed=5)
    assert float(removal_curve(H, torch.zeros(5, 5), W).losses.sum()) == 0.0


def test_a_singular_moment_and_dead_columns_are_no_obstacle():
    H, G, W = problem(12, rank=3)
    H[4], H[:, 4] = 0.0, 0.0
    curve = removal_curve(H, G, W)
    assert bool(curve.losses.isfinite().all())
    assert sorted(curve.order.tolist()) == list(range(12))
    assert bool((curve.losses >= 0).all())
    dead = removal_curve(torch.zeros(3, 3), G, W[:, :3])
    assert bool(dead.losses.isfinite().all())


def test_no_units_are_no_obstacle():
    empty = torch.zeros(0, 0)
    curve = removal_curve(empty, torch.eye(3), torch.zeros(3, 0))
    assert curve.order.numel() == curve.losses.numel() == 0
    assert curve_importance(curve).numel() == 0
    assert ridge_inverse(empty, 0.01).shape == (0, 0)


def test_an_intercept_is_a_column_that_stays():
    generator = torch.Generator().manual_seed(6)
    x = torch.randn(40, 4, generator=generator, dtype=torch.float64) + 2
    _, G, W = problem(4, seed=6)
    ones = torch.cat([x, torch.ones(40, 1, dtype=x.dtype)], dim=1)
    y = x @ W.T
    fitted = torch.linalg.lstsq(ones[:, [1, 2, 3, 4]], y).solution
    error = y - ones[:, [1, 2, 3, 4]] @ fitted
    covariance = torch.cov(x.T, correction=0)
    curve = removal_curve(covariance, G, W, damping=1e-10)
    alone = [removal_curve(covariance[[u]][:, [u]], G, W[:, [u]], damping=1e-10) for u in range(4)]
    assert float(alone[0].losses.sum()) > 0
    first = int(curve.order[0])
    if first != 0:
        rest = [u for u in range(4) if u != first]
        design = ones[:, [*rest, 4]]
        error = y - design @ torch.linalg.lstsq(design, y).solution
    assert float(curve.losses[0]) == pytest.approx(float(torch.trace(G @ error.T @ error)) / 40)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]),
        ([3.0, 1.0, 2.0], [2.0, 2.0, 2.0]),
        ([1.0, 4.0, 2.0, 8.0], [1.0, 3.0, 3.0, 8.0]),
        ([0.0, 0.0], [0.0, 0.0]),
        ([], []),
    ],
)
def test_pooling_makes_values_rise_and_keeps_their_sum(values, expected):
    torch.testing.assert_close(pooled(torch.tensor(values)), torch.tensor(expected))


def test_importance_rises_strictly_along_the_order():
    H, G, W = problem(80, outputs=4, rows=30, seed=7)
    W[:, 10:30] = 0.0
    curve = removal_curve(H, G, W)
    importance = curve_importance(curve)
    along = importance[curve.order]
    assert bool((along[1:] > along[:-1]).all())
    assert importance.argsort(stable=True).tolist() == curve.order.tolist()
    assert float(importance.double().sum()) == pytest.approx(float(curve.losses.sum()), rel=1e-4)
