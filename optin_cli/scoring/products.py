"""Importance of query-key dimensions: what leaving out the last ones of every head costs.

In the balanced basis of a head's queries and keys (`model.head_dims`), queries that lose dimension u change by that
component alone, and components are uncorrelated. With g = dS/dq of the sketch's random scalar S, and errors of
tokens taken as independent of each other and of g, as removal curves do (`curves.py`), that costs

    sum_heads E[q_u^2] E[g_u^2] x tokens,   q and g in that basis and its dual

in the unit of removal curves. Dimensions go from the last to the first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import nn

from optin_cli.data.batch import Batch
from optin_cli.model.forward import Hooks
from optin_cli.model.head_dims import Products, balanced_basis
from optin_cli.refit.products import ProductMoments, parts_of, token_rows
from optin_cli.scoring.curves import Curve, curve_importance

COUNTS = ("gradients", "positions", "samples")


@dataclass(frozen=True)
class DimMoments:
    """Moments of queries and keys, and of the gradients at queries.

    curvature: sums of g g^T (heads, dims, dims) float64. counts: int64 numbers of gradients, one per token and probe;
    of positions, the tokens that S depends on; and of samples.
    """

    moments: ProductMoments
    curvature: torch.Tensor
    counts: torch.Tensor

    @classmethod
    def zeros(cls, one: Products, device: torch.device | str = "cpu") -> Self:
        """No tokens yet."""
        moments = ProductMoments.zeros(one, device)
        return cls(moments, torch.zeros_like(moments.queries), torch.zeros(len(COUNTS), dtype=torch.int64))

    def number(self, name: str) -> int:
        """A count by its name."""
        return int(self.counts[COUNTS.index(name)])

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything that is summed, by name."""
        return {**self.moments.tensors(), "curvature": self.curvature, "counts": self.counts}

    def importance(self) -> torch.Tensor:
        """What each dimension adds to the loss, in all heads, on top of those after it: (dims,) float32."""
        there, back = balanced_basis(*self.moments.second_moments())
        queries, _ = self.moments.second_moments()
        gradients, positions, samples = self.counts.clamp(min=1).tolist()
        sizes = (there @ queries @ there.mT).diagonal(dim1=-2, dim2=-1)
        slopes = (back.mT @ self.curvature @ back).diagonal(dim1=-2, dim2=-1) / gradients
        losses = (sizes * slopes).sum(dim=0) * (positions / samples)
        order = torch.arange(len(losses), device=losses.device).flip(0)
        return curve_importance(Curve(order, losses.flip(0)))


def empty_dims(model: nn.Module, products: Sequence[Products]) -> dict[str, DimMoments]:
    """Moments without tokens, by group name."""
    device = next(model.parameters()).device
    return {one.name: DimMoments.zeros(one, device) for one in products}


@dataclass(frozen=True)
class DimWatch:
    """Adds what forward and backward passes of a batch show of queries and keys to the moments.

    moments: by group name, from `empty_dims`.
    """

    products: Sequence[Products]
    moments: Mapping[str, DimMoments]

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

            def collect(gradient: torch.Tensor) -> None:
                rows, real = token_rows(one, 0, gradient.detach(), batch)
                now = (rows != 0).flatten(2).any(dim=-1) & real
                # A position is counted once, whichever probes show that S depends on it.
                moments.counts[1] += int((now & ~read).sum())
                read.logical_or_(now)
                heads = rows[now].double().transpose(0, 1)
                moments.curvature.add_(heads.mT @ heads)
                moments.counts[0] += int(now.sum())

            output.register_hook(collect)  # type: ignore[no-untyped-call]
            moments.counts[2] += batch.size
            return output

        hook.after(layer, see, prepend=True)
