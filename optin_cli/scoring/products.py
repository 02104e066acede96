"""Importance of query-key dimensions: what leaving out the last ones of every head costs.

In the balanced basis of a head's queries and keys (`model.head_dims`), queries that lose dimension u change by that
component alone, and components are uncorrelated. With g = dS/dq of the sketch's random scalar S, and errors of
tokens taken as independent of each other and of g, as removal curves do (`curves.py`), that costs

    sum_heads E[q_u^2] E[g_u^2] x tokens,   q and g in that basis and its dual.

As removal curves are, these losses are scaled to the unit of the sketch (`moments.py`): by what single dimensions cost
as measured, in the basis of the weights, which is known before any data is. Dimensions go from the last to the first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from typing_extensions import Self

from optin_cli.data.batch import Batch
from optin_cli.model.forward import Hooks
from optin_cli.model.head_dims import Products, balanced_basis
from optin_cli.refit.products import ProductMoments, token_rows
from optin_cli.scoring.curves import Curve, curve_importance, typical_ratio


@dataclass(frozen=True)
class DimSums:
    """Moments of a block's queries and keys, and of the gradients at its queries.

    basis: T and T^-1 of the weights (heads, dims, dims). curvature: sums of g g^T (heads, dims, dims) float64. draws:
    int64, samples times probes.
    """

    basis: tuple[torch.Tensor, torch.Tensor]
    moments: ProductMoments
    curvature: torch.Tensor
    draws: torch.Tensor

    @classmethod
    def read(cls, basis: tuple[torch.Tensor, torch.Tensor], tensors: Mapping[str, torch.Tensor]) -> DimSums:
        """Those that have the given tensors, named as by `tensors`."""
        own = {name: tensors[name] for name in ("curvature", "draws")}
        return DimSums(basis, ProductMoments(**{name: t for name, t in tensors.items() if name not in own}), **own)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything that is summed, by name."""
        return {**self.moments.tensors(), "curvature": self.curvature, "draws": self.draws}

    def losses(self, basis: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """What each dimension of a basis costs in all heads, errors of tokens being independent: (dims,)."""
        (there, back), (queries, _) = basis, self.moments.second_moments()
        sizes = (there @ queries @ there.mT).diagonal(dim1=-2, dim2=-1)
        slopes = (back.mT @ self.curvature @ back).diagonal(dim1=-2, dim2=-1) / max(int(self.draws), 1)
        losses: torch.Tensor = (sizes.clamp(min=0.0) * slopes.clamp(min=0.0)).sum(dim=0)  # rounded, 0 may be below it
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


@dataclass(frozen=True)
class DimMoments(DimSums):
    """The same of known layers, added to in place."""

    products: Products

    @classmethod
    def zeros(cls, one: Products, model: nn.Module) -> Self:
        """No tokens yet."""
        there, back = one.basis(model)
        basis = (there.contiguous(), back.contiguous())  # as files hold them, so that products round alike
        moments = ProductMoments.zeros(one, there.device)
        return cls(basis, moments, torch.zeros_like(moments.queries), torch.zeros(1, dtype=torch.int64), one)

    def add_gradients(self, rows: torch.Tensor, real: torch.Tensor) -> None:
        """Add gradients of one probe at queries (samples, tokens, heads, dims); real: (samples, tokens)."""
        heads = rows[real].double().transpose(0, 1)
        self.curvature.add_(heads.mT @ heads)
        self.draws.add_(len(rows))


def empty_dims(model: nn.Module, products: Sequence[Products]) -> dict[str, DimMoments]:
    """Moments without tokens, by group name."""
    return {one.name: DimMoments.zeros(one, model) for one in products}


@dataclass(frozen=True)
class DimWatch:
    """Adds what forward and backward passes of one batch show of queries and keys to the moments.

    moments: by group name, from `empty_dims`. sums: of (dS/dm_u)^2 in the basis of the weights (rows, dims), over the
    probes so far, by group name.
    """

    moments: Mapping[str, DimMoments]
    sums: dict[str, torch.Tensor] = field(default_factory=dict)

    def squares(self, probes: int) -> dict[str, torch.Tensor]:
        """Means of (dS/dm_u)^2 over probes (rows, dims) float64, by group name."""
        return {name: (total / probes).cpu() for name, total in self.sums.items()}

    def watch(self, hook: Hooks, model: nn.Module, batch: Batch, leaves: list[torch.Tensor]) -> None:
        """Hook the layers. leaves: tensors at which backward passes end, to which more may be added."""
        for moments in self.moments.values():
            self._watch_keys(hook, model, batch, moments)
            self._watch_queries(hook, model, batch, moments, leaves)

    def _watch_keys(self, hook: Hooks, model: nn.Module, batch: Batch, moments: DimMoments) -> None:
        def see(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
            rows, real = token_rows(moments.products, 1, output.detach(), batch)
            moments.moments.add(1, rows[real])

        hook.after(model.get_submodule(moments.products.key), see, prepend=True)

    def _watch_queries(
        self, hook: Hooks, model: nn.Module, batch: Batch, moments: DimMoments, leaves: list[torch.Tensor]
    ) -> None:
        one = moments.products

        def see(_module: nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
            queries, real = token_rows(one, 0, output.detach().float(), batch)
            moments.moments.add(0, queries[real])
            if not output.requires_grad:
                output = output.detach().requires_grad_()
                leaves.append(output)
            there, back = (part.to(output.device, torch.float32) for part in moments.basis)
            self.sums[one.name] = torch.zeros(batch.size, one.dims, dtype=torch.float64, device=output.device)

            def collect(gradient: torch.Tensor) -> None:
                rows, _ = token_rows(one, 0, gradient.detach().float(), batch)
                moments.add_gradients(rows, real)
                mine = torch.einsum("bthd,hud->bthu", queries, there)
                theirs = torch.einsum("bthd,hdu->bthu", rows, back)
                self.sums[one.name] += (mine * theirs).sum(dim=(1, 2)).double().square()

            output.register_hook(collect)  # type: ignore[no-untyped-call]
            return output

        hook.after(model.get_submodule(one.query), see, prepend=True)
