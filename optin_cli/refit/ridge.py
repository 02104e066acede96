"""Ridge least squares from normal equations, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

STRIP = 256
"""Columns of a Gram matrix that are computed together; what is left of their block on the diagonal is mirrored."""
ROWS = 1024
"""Rows whose products are summed in their own precision before those sums are added up in float64."""


@dataclass
class Normal:
    """Normal equations of X W = Y over rows.

    upper: of X^T X (k, k), on and above the diagonal, and anything below. cross: X^T Y (k, d). totals: squared size of
    each column of Y (d,). rows: how many. weights: (d,), of the squared error in each column of Y; 1 where None.
    """

    upper: torch.Tensor
    cross: torch.Tensor
    totals: torch.Tensor
    rows: int
    weights: torch.Tensor | None = None
    mirrored: bool = False

    @classmethod
    def zeros(cls, width: int, outputs: int, device: torch.device, weights: torch.Tensor | None = None) -> Normal:
        """No rows yet."""
        upper = torch.zeros(width, width, dtype=torch.float64, device=device)
        return cls(upper, upper.new_zeros(width, outputs), upper.new_zeros(outputs), 0, weights)

    @property
    def gram(self) -> torch.Tensor:
        """X^T X (k, k)."""
        if not self.mirrored:
            for start in range(0, len(self.upper), STRIP):
                end = start + STRIP
                self.upper[end:, start:end] = self.upper[start:end, end:].T
            self.mirrored = True
        return self.upper

    @classmethod
    def of(cls, sums: Sequence[torch.Tensor], weights: torch.Tensor | None = None) -> Normal:
        """Those that have the given sums, as `sums` gives them."""
        gram, cross, totals, rows = sums
        return cls(gram, cross, totals, int(rows), weights)

    def sums(self) -> list[torch.Tensor]:
        """Everything that is summed."""
        return [self.gram, self.cross, self.totals, torch.tensor(self.rows)]

    def add(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Take in rows x (n, k) and y (n, d), whose products are in their precision."""
        for mine, theirs in zip(torch.split(x, ROWS), torch.split(y, ROWS), strict=True):
            for start in range(0, x.shape[1], STRIP):
                self.upper[start : start + STRIP, start:] += mine[:, start : start + STRIP].T @ mine[:, start:]
            self.cross += mine.T @ theirs
        self.totals += y.double().square().sum(dim=0)
        self.rows += x.shape[0]
        self.mirrored = False

    def plus(self, other: Normal) -> Normal:
        """Both sets of rows."""
        return Normal(
            self.upper + other.upper,
            self.cross + other.cross,
            self.totals + other.totals,
            self.rows + other.rows,
            self.weights,
        )

    def error(self, weight: torch.Tensor) -> float:
        """Mean over rows of the weighted ||x W - y||^2 for weight (k, d)."""
        squared = (weight * (self.gram @ weight - 2 * self.cross)).sum(dim=0) + self.totals
        if self.weights is not None:
            squared = squared * self.weights
        return max(float(squared.sum()), 0.0) / max(self.rows, 1)


def relative(error: float, size: float) -> float:
    """A squared error as a share of the target's size: not below 0 by rounding, and 0 where the target is zeros."""
    return max(error, 0.0) / size if size > 0 else 0.0


def solve_ridge(normal: Normal, start: torch.Tensor, ridge: float, *, bias: bool) -> torch.Tensor:
    """Minimise ||X W - Y||^2 + mu ||W - start||^2, mu = ridge x mean diagonal of the Gram matrix: (k, d).

    With `bias`, the last column of X is constant 1 and is not drawn to its start. X may have no other column, or none.
    """
    columns = normal.gram.shape[0]
    mean = float(normal.gram.diagonal()[: columns - bias].mean()) if columns > bias else 1.0
    pull = normal.gram.new_full((columns,), ridge * mean)
    if bias:
        pull[-1] = 1e-9 * max(float(normal.gram[-1, -1]), 1.0)
    matrix = normal.gram.clone()
    matrix.diagonal().add_(pull)
    target = normal.cross + pull[:, None] * start
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if int(failed):
        return torch.matmul(torch.linalg.pinv(matrix, hermitian=True), target)
    solution: torch.Tensor = torch.cholesky_solve(target, factor)
    return solution
