"""Cholesky factors of matrices that are definite, singular, or spoiled by rounding."""

import pytest
import torch

from optin_cli.model.definite import damped_cholesky


def test_each_matrix_gets_the_shift_that_it_needs():
    given = torch.diag_embed(torch.tensor([[2.0, 1.0, 3.0], [1.0, 0.0, 1.0], [1.0, -0.005, 1.0]], dtype=torch.float64))
    factor, shift = damped_cholesky(given, 0.001)
    assert shift.tolist() == pytest.approx([0.001, 0.001, 0.01])
    assert torch.allclose(factor @ factor.mT, given + shift[:, None, None] * torch.eye(3))
    assert torch.equal(factor, factor.tril())


def test_a_single_matrix_and_an_empty_one():
    factor, shift = damped_cholesky(torch.zeros(2, 2), 4.0)
    assert factor.tolist() == [[2.0, 0.0], [0.0, 2.0]] and float(shift) == 4.0
    assert damped_cholesky(torch.zeros(0, 0), 1.0)[0].shape == (0, 0)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_end_it(number):
    with pytest.raises(ValueError, match="not finite"):
        damped_cholesky(torch.full((2, 2), number), 1.0)
