"""Ridge regression: the algebra of its normal equations."""

import pytest
import torch

from optin_cli.refit import ridge as least_squares


def equations(rows=200, width=6, outputs=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    y = x @ torch.randn(width, outputs, generator=generator, dtype=torch.float64) + 0.1
    normal = least_squares.Normal.zeros(width, outputs, x.device)
    for part_x, part_y in zip(x.split(37), y.split(37), strict=True):
        normal.add(part_x, part_y)
    return x, y, normal


def test_error_is_the_mean_squared_residual():
    x, y, normal = equations()
    weight = torch.randn(6, 3, dtype=torch.float64)
    assert normal.error(weight) == pytest.approx(float((x @ weight - y).square().sum() / len(x)))


def test_wide_gram_matrices_are_summed_in_strips():
    x, _, normal = equations(rows=90, width=2 * least_squares.STRIP + 5)
    assert torch.allclose(normal.gram, x.T @ x, atol=1e-10)


def test_a_vanishing_ridge_gives_least_squares():
    x, y, normal = equations()
    solution = least_squares.solve_ridge(normal, torch.zeros(6, 3, dtype=torch.float64), 1e-12, bias=False)
    assert torch.allclose(solution, torch.linalg.lstsq(x, y).solution, atol=1e-8)


def test_a_huge_ridge_gives_the_start():
    _, _, normal = equations()
    start = torch.randn(6, 3, dtype=torch.float64)
    assert torch.allclose(least_squares.solve_ridge(normal, start, 1e12, bias=False), start, atol=1e-6)


def test_the_bias_is_not_drawn_to_its_start():
    x, _, _ = equations()
    rows = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], dim=1)
    normal = least_squares.Normal.zeros(7, 3, x.device)
    normal.add(rows, torch.full((len(x), 3), 5.0, dtype=x.dtype))
    solution = least_squares.solve_ridge(normal, torch.zeros(7, 3, dtype=x.dtype), 1e6, bias=True)
    assert torch.allclose(solution[-1], torch.full((3,), 5.0, dtype=x.dtype), atol=1e-3)


def test_columns_that_are_always_zero_are_no_obstacle():
    normal = least_squares.Normal.zeros(3, 2, torch.device("cpu"))
    normal.add(torch.tensor([[1.0, 0.0, 0.0]]).double(), torch.tensor([[2.0, 3.0]]).double())
    solution = least_squares.solve_ridge(normal, torch.zeros(3, 2, dtype=torch.float64), 1e-6, bias=False)
    assert torch.allclose(solution[0], torch.tensor([2.0, 3.0]).double(), atol=1e-4)
