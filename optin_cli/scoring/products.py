"""Importance of query-key dimensions: what leaving out the last ones of every head costs.

In the balanced basis of a head's queries and keys (`model.head_dims`), queries that lose dimension u change by that
component alone, and components are uncorrelated. With g = dS/dq of the sketch's random scalar S, and errors of
tokens taken as independent of each other and of g, as removal curves do (`curves.py`), that costs

    sum_heads E[q_u^2] E[g_u^2] x tokens,   q and g in that basis and its dual.

As removal curves are, these losses are scaled to the unit of the sketch (`moments.py`): by what single dimensions cost
as measured, in the basis of the weights, which is known before any data is. Dimensions go from the last to the first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import nn

from optin_cli.data.batch import Batch
from optin_cli.model.forward import Hooks
from optin_cli.model.head_dims import Products, balanced_basis
from optin_cli.refit.products import ProductMoments, parts_of, token_rows
from optin_cli.scoring.curves import Curve, curve_importance, typical_ratio

COUNTS = ("gradients", "positions", "samples")


@dataclass(frozen=True)
class DimMoments:
    """Moments of queries and keys, and of the gradients at queries.

    basis: T and T^-1 of the weights (heads, dims, dims). curvature: sums of g g^T (heads, dims, dims) float64. counts:
    int64 numbers of gradients, one per token and probe; of positions, the tokens that S depends on; and of samples.
    """

    basis: tuple[torch.Tensor, torch.Tensor]
    moments: ProductMoments
    curvature: torch.Tensor
    counts: torch.Tensor

    @classmethod
    def zeros(cls, one: Products, model: nn.Module) -> Self:
        """No tokens yet."""
        basis = one.basis(model)
        moments = ProductMoments.zeros(one, basis[0].device)
        return cls(basis, moments, torch.zeros_like(moments.queries), torch.zeros(len(COUNTS), dtype=torch.int64))

    def number(self, name: str) -> int:
        """A count by its name."""
        return int(self.counts[COUNTS.index(name)])

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything that is summed, by name."""
        return {**self.moments.tensors(), "curvature": self.curvature, "counts": self.counts}

    def losses(self, basis: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """What each dimension of a basis costs in all heads, errors of tokens being independent: (dims,)."""
        there, back = basis
        queries, _ = self.moments.second_moments()
        gradients, positions, samples = self.counts.clamp(min=1).tolist()
        sizes = (there @ queries @ there.mT).diagonal(dim1=-2, dim2=-1)
        slopes = (back.mT @ self.curvature @ back).diagonal(dim1=-2, dim2=-1) / gradients
        losses: torch.Tensor = (sizes * slopes).sum(dim=0) * (positions / samples)
        return losses

    def importance(self, squared: torch.Tensor) -> torch.Tensor:
        """What each dimension adds to the loss, in all heads, on top of those after it: (dims,) float32.

        Args:
            squared: E[(dS/dm_u)^2] in the basis of the weights (dims,).
        """
        losses = self.losses(balanced_basis(*self.moments.second_moments()))
        scale = typical_ratio(squared.to(losses), self.losses(self.basis))
        order = torch.arange(len(losses), device=losses.device).flip(0)
        return curve_importance(Curve(order, losses.flip(0) * scale))


def empty_dims(model: nn.Module, products: Sequence[Products]) -> dict[str, DimMoments]:
    """Moments without tokens, by group name."""
    return {one.name: DimMoments.zeros(one, model) for one in products}


@dataclass(frozen=True)
class DimWatch:
    """Adds what forward and backward passes of one batch show of queries and keys to the moments.

    moments: by group name, from `empty_dims`. sums: of (dS/dm_u)^2 in the basis of the weights (rows, dims), over the
    probes so far, by group name.
    """

    products: Sequence[Products]
    moments: Mapping[str, DimMoments]
    sums: dict[str, torch.Tensor] = field(default_factory=dict)

    def squares(self, probes: int) -> dict[str, torch.Tensor]:
        """Means of (dS/dm_u)^2 over probes (rows, dims) float64, by group name."""
        return {name: total / probes for name, total in self.sums.items()}

    def watch(self, hook: Hooks, model: nn.Module, batch: Batch, leaves: list[torch.Tensor]) -> None:
        """Hook the layers. leaves: tensors at which backward passes end, to which more may be added."""
        for one in self.products:
            for path, parts in parts_of(one):
                self._watch_layer(hook, model.get_submodule(path), (one, parts), batch, leaves)

    def _watch_layer(
        self,
        hook: Hooks,
        layer: nn.Module,
        what: tuple[Products, tuple[int, ...]],
        batch: Batch,
        leaves: list[torch.Tensor],
    ) -> None:
        (one, parts), moments = what, self.moments[what[0].name]

        def see(_module: nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
            for part in parts:
                rows, real = token_rows(one, part, output.detach(), batch)
                moments.moments.add(part, rows[real])
            if 0 not in parts:
                return output
            if not output.requires_grad:
                output = output.detach().requires_grad_()
                leaves.append(output)
            read = torch.zeros(real.shape, dtype=torch.bool, device=real.device)
            queries, there, back = output.detach(), *(part.to(output) for part in moments.basis)
            self.sums.setdefault(one.name, torch.zeros(batch.size, one.dims, dtype=torch.float64))

            def collect(gradient: torch.Tensor) -> None:
                rows, real = token_rows(one, 0, gradient.detach(), batch)
                now = (rows != 0).flatten(2).any(dim=-1) & real
                # A position is counted once, whichever probes show that S depends on it.
                moments.counts[1] += int((now & ~read).sum())
                read.logical_or_(now)
                heads = rows[now].double().transpose(0, 1)
                moments.curvature.add_(heads.mT @ heads)
                moments.counts[0] += int(now.sum())
                mine = torch.einsum("bthd,hud->bthu", token_rows(one, 0, queries, batch)[0], there)
                theirs = torch.einsum("bthd,hdu->bthu", rows, back)
                self.sums[one.name] += (mine * theirs).sum(dim=(1, 2)).double().square().cpu()

            output.register_hook(collect)  # type: ignore[no-untyped-call]
            moments.counts[2] += batch.size
            return output

        hook.after(layer, see, prepend=True)
