"""Removal curves: in which order a layer's units go, and what each removal costs once the rest is re-solved.

Optimal brain surgeon (LeCun 1990; Hassibi & Stork 1993) for whole units of a linear layer y = W x, with the
Kronecker-factored curvature E[g g^T] x E[x x^T] of what its output does to a scalar S (as in LLM Surgeon,
arXiv 2312.17244). Removing the columns R and re-solving the others by ridge least squares costs, to second order,

    loss(R) = tr(M_RR (C_RR)^-1),   C = (H + mu I)^-1,  M = W^T G W,  H = E[x x^T],  G = E[g g^T],  g = dS/dy

and leaves the same problem with fewer columns:

    C <- C - C_:R C_RR^-1 C_R:,   W <- W - W_:R C_RR^-1 C_R:

Units are removed one by one, the one of least loss first. No model is known here: matrices in, a curve out.
"""

from dataclasses import dataclass

import numpy as np
import torch

from optin_cli.model.definite import damped_cholesky

PANEL = 64
"""Columns whose removal is written back to the matrices at once: a matrix product instead of many outer products."""


@dataclass(frozen=True)
class Curve:
    """A removal order and its price.

    order: (units,) int64, the unit that goes first comes first. losses: (units,) float64, what each removal in that
    order adds, not negative; they need not rise along it.
    """

    order: torch.Tensor
    losses: torch.Tensor


def ridge_inverse(moment: torch.Tensor, damping: float) -> torch.Tensor:
    """(H + mu I)^-1 with mu = damping x mean diagonal of H, which may be singular: (k, k).

    Columns that are always zero leave a zero matrix its scale, so that the inverse exists even then.
    """
    if not moment.shape[0]:
        return moment.clone()
    mean = float(moment.diagonal().mean())
    shift = damping * mean if mean > 0 else 1.0
    return torch.cholesky_inverse(damped_cholesky(moment, shift)[0])


def removal_curve(
    moment: torch.Tensor,
    curvature: torch.Tensor,
    weight: torch.Tensor,
    *,
    width: int = 1,
    damping: float,
    panel: int = PANEL,
) -> Curve:
    """Order the units of a layer by what their removal costs when those that are left make up for it.

    Every step takes the best unit of the current state. Rank-`width` downdates are gathered in panels and
    written back together, which changes the order of additions only.

    Args:
        moment: H of the layer's input (k, k); the covariance where an intercept is re-solved too.
        curvature: G of the gradients at its output (d, d).
        weight: W (d, k), the columns of unit u being u * width to (u + 1) * width.
        width: columns of a unit.
        damping: mu relative to the mean diagonal of H, above 0.
        panel: columns that are removed between two write-backs.
    """
    inverse = ridge_inverse(moment.double(), damping)
    columns = weight.double()
    coupling = columns.T @ curvature.double() @ columns
    coupling = (coupling + coupling.T).div_(2)
    units = torch.arange(weight.shape[1] // width, device=weight.device)
    order: list[torch.Tensor] = []
    losses: list[torch.Tensor] = []
    while len(units):
        steps = min(max(panel // width, 1), len(units))
        places, prices, left, right = _remove(inverse, coupling, width, steps)
        order.append(units[places])
        losses.append(prices)
        stay = torch.ones(len(units), dtype=torch.bool, device=units.device)
        stay[places] = False
        units = units[stay]
        rows = stay.repeat_interleave(width).nonzero().squeeze(1)
        left, right = left.index_select(1, rows), right.index_select(1, rows)
        inverse = _block(inverse, rows).addmm_(left.T, left, alpha=-1)
        both, swapped = torch.cat([right, left]), torch.cat([left, right])
        coupling = _block(coupling, rows).addmm_(both.T, swapped, alpha=-1)
    if not order:
        return Curve(units, moment.new_zeros(0, dtype=torch.float64))
    return Curve(torch.cat(order), torch.cat(losses).clamp(min=0.0))


def lone_losses(moment: torch.Tensor, curvature: torch.Tensor, weight: torch.Tensor, *, width: int = 1) -> torch.Tensor:
    """tr(M_uu H_uu) of every unit u, what its removal costs if nothing makes up for it: (units,) float64.

    Args: as of `removal_curve`.
    """
    columns = weight.double()
    coupling = columns.T @ curvature.double() @ columns
    return (_diagonal_blocks(coupling, width) * _diagonal_blocks(moment.double(), width)).sum(dim=(1, 2))


def typical_ratio(measured: torch.Tensor, modelled: torch.Tensor) -> float:
    """Median of measured / modelled over the units that have both, so that no few units decide; 1 if none has."""
    both = (measured > 0) & (modelled > 0)
    return float((measured[both] / modelled[both]).median()) if bool(both.any()) else 1.0


def _remove(
    inverse: torch.Tensor, coupling: torch.Tensor, width: int, steps: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Remove `steps` units, each the cheapest when its turn comes, without touching the matrices.

    Returns:
        (places, losses, U, R): which of the units, what each costs, and factors (steps * width, k) of the
        downdates C - U^T U and M - R^T U - U^T R.
    """
    size = inverse.shape[0]
    own, mixed = _diagonal_blocks(inverse, width), _diagonal_blocks(coupling, width)
    left = inverse.new_zeros(steps * width, size)
    right = torch.zeros_like(left)
    gone = torch.zeros(size // width, dtype=torch.bool, device=inverse.device)
    places: list[int] = []
    losses = inverse.new_zeros(steps)
    for step in range(steps):
        prices = _prices(own, mixed).masked_fill_(gone, torch.inf)
        place = int(prices.argmin())
        losses[step] = prices[place]
        gone[place] = True
        places.append(place)
        mine = slice(place * width, (place + 1) * width)
        earlier, lately = left[: step * width], right[: step * width]
        rows = inverse[mine] - earlier[:, mine].T @ earlier
        coupled = coupling[mine] - lately[:, mine].T @ earlier - earlier[:, mine].T @ lately
        # With C_RR = L L^T: U = L^-1 C_R:, and R such that R^T U + U^T R is all that M loses.
        root = _inverse_root(rows[:, mine])
        swept, turned = root @ rows, root @ coupled
        rest = turned - (turned[:, mine] @ root.T / 2) @ swept
        now = slice(step * width, (step + 1) * width)
        left[now], right[now] = swept, rest
        _downdate(own, mixed, swept, rest)
    return torch.tensor(places, device=inverse.device), losses, left, right


def _inverse_root(matrix: torch.Tensor) -> torch.Tensor:
    """L^-1 of a positive definite matrix L L^T: (n, n)."""
    if matrix.shape[0] == 1:
        return matrix.rsqrt()
    factor = torch.linalg.cholesky_ex(matrix)[0]
    root: torch.Tensor = torch.linalg.solve_triangular(factor, torch.eye(len(factor)).to(factor), upper=False)
    return root


def _block(matrix: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """The rows and columns of a matrix at the places, copied."""
    return matrix[places[:, None], places]


def _prices(own: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
    """tr(C_uu^-1 M_uu) of every unit u: (units,)."""
    if own.shape[-1] == 1:
        return (mixed / own).flatten()
    factors = torch.linalg.cholesky_ex(own)[0]
    return torch.cholesky_solve(mixed, factors).diagonal(dim1=1, dim2=2).sum(dim=1)


def _downdate(own: torch.Tensor, mixed: torch.Tensor, swept: torch.Tensor, rest: torch.Tensor) -> None:
    """Take U^T U and R^T U + U^T R off the diagonal blocks, in place."""
    width = own.shape[-1]
    if width == 1:
        own.view(-1).sub_(swept[0].square())
        mixed.view(-1).sub_(swept[0] * rest[0], alpha=2)
        return
    u, r = (rows.reshape(width, -1, width).movedim(1, 0) for rows in (swept, rest))
    own.sub_(u.mT @ u)
    cross = r.mT @ u
    mixed.sub_(cross + cross.mT)


def _diagonal_blocks(matrix: torch.Tensor, width: int) -> torch.Tensor:
    """The width x width blocks on the diagonal, copied: (units, width, width)."""
    count = matrix.shape[0] // width
    return matrix.reshape(count, width, count, width).diagonal(dim1=0, dim2=2).movedim(-1, 0).clone()


def pooled(values: torch.Tensor) -> torch.Tensor:
    """The non-decreasing sequence closest to `values` in squares, which has the same sum: (n,)."""
    if not len(values):
        return values
    from scipy.optimize import isotonic_regression

    return torch.from_numpy(isotonic_regression(values.cpu().double().numpy()).x).to(values)


def curve_importance(curve: Curve) -> torch.Tensor:
    """Importance of every unit, (units,) float32 by unit: what its removal adds, strictly rising along the order.

    An integer program that takes units by falling importance then removes them in the curve's order, and pays what
    the curve says wherever pooling did not have to make its losses rise.
    """
    rising = pooled(curve.losses).float()
    # Ties and steps of rounding would leave the order within a pool to whoever sorts.
    strict = rising.cpu().numpy()
    for place in range(1, len(strict)):
        strict[place] = max(strict[place], np.nextafter(strict[place - 1], np.float32(np.inf)))
    found = torch.zeros_like(rising)
    found[curve.order] = torch.from_numpy(strict).to(found)
    return found
