"""Query and key layers of pruned attention, re-solved so that its scores stay closest to the original's.

Of rank-r products those in the balanced basis of the queries and keys that the data give are closest to the original's
(`model.head_dims.balanced_basis`), where pruning could only take the basis of the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import nn
from typing_extensions import Self

from optin_cli.artifacts.manifest import Refit
from optin_cli.data.batch import Batch
from optin_cli.model.cut import PrunedModel
from optin_cli.model.forward import Hooks, hooks, run_until_stopped
from optin_cli.model.head_dims import Products, balanced_basis, head_dims_of
from optin_cli.model.lookup import tensor_at
from optin_cli.processes.portions import cut_portions, sum_portions
from optin_cli.processes.processes import ALONE, Processes
from optin_cli.refit.design_matrix import output_rows
from optin_cli.refit.residual_stream import held_out
from optin_cli.refit.ridge import relative


@dataclass(frozen=True)
class ProductMoments:
    """Sums over tokens of queries q and keys k of all heads of a block, float64, which are added to in place.

    queries: of q q^T, keys: of k k^T, both (heads, dims, dims). total: of k (heads, dims). count: int64, tokens.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    total: torch.Tensor
    count: torch.Tensor

    @classmethod
    def zeros(cls, one: Products, device: torch.device | str = "cpu") -> Self:
        """No tokens yet."""
        square = torch.zeros(one.count, one.dims, one.dims, dtype=torch.float64, device=device)
        return cls(square, square.clone(), square.new_zeros(one.count, one.dims), torch.zeros(1, dtype=torch.int64))

    def add(self, part: int, rows: torch.Tensor) -> None:
        """Add queries (part 0) or keys (part 1), (tokens, heads, dims)."""
        heads = rows.double().transpose(0, 1)
        (self.queries, self.keys)[part].add_(heads.mT @ heads)
        if part:
            self.total.add_(heads.sum(dim=1))
            self.count.add_(len(rows))

    def second_moments(self) -> tuple[torch.Tensor, torch.Tensor]:
        """E[q q^T] and the covariance of k, each (heads, dims, dims): a mean key changes no softmax."""
        count = self.count.to(self.total.device).clamp(min=1)
        mean = self.total / count
        return self.queries / count, self.keys / count - mean[:, :, None] * mean[:, None, :]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything that is summed, by name."""
        return {"queries": self.queries, "keys": self.keys, "total": self.total, "count": self.count}

    def plus(self, other: ProductMoments) -> ProductMoments:
        """Both sets of tokens."""
        mine, theirs = self.tensors(), other.tensors()
        return ProductMoments(**{name: tensor + theirs[name] for name, tensor in mine.items()})

    def error(self, basis: tuple[torch.Tensor, torch.Tensor], dims: Sequence[int], heads: Sequence[int]) -> float:
        """Mean squared error of centred scores with these dimensions of a basis, relative to their mean square."""
        queries, keys = (moment[list(heads)] for moment in self.second_moments())
        there, back = basis
        lost = torch.eye(there.shape[-1]).to(there) - back[..., list(dims)] @ there[:, list(dims)]
        size = float(torch.einsum("hij,hji->", queries, keys))
        return relative(float(torch.einsum("hij,hji->", lost @ queries @ lost.mT, keys)), size)


def token_rows(one: Products, part: int, output: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries or keys (rows, positions, heads, dims) in a layer's output, and which are real (rows, positions)."""
    laid = output_rows(output, -1, batch.size)
    return one.output(laid, part), batch.mask_for(laid)


@torch.no_grad()
def measure_products(
    model: nn.Module, products: Sequence[Products], batches: Sequence[Batch]
) -> dict[str, tuple[ProductMoments, ProductMoments]]:
    """Moments of samples to fit on, and of those held out, by group name."""
    device = next(model.parameters()).device
    found = {one.name: (ProductMoments.zeros(one, device), ProductMoments.zeros(one, device)) for one in products}

    def watch(hook: Hooks, one: Products, batch: Batch) -> None:
        for path, parts in one.layers.items():

            def see(_module: nn.Module, _inputs: object, output: torch.Tensor, parts: tuple[int, ...] = parts) -> None:
                judge = held_out(batch)[:, None]
                for part in parts:
                    rows, real = token_rows(one, part, output, batch)
                    for moments, chosen in zip(found[one.name], (real & ~judge, real & judge), strict=True):
                        moments.add(part, rows[chosen])

            hook.after(model.get_submodule(path), see, prepend=True)

    for batch in batches:
        with hooks() as hook:
            for one in products:
                watch(hook, one, batch)
            run_until_stopped(model, batch.inputs)
    return found


def share_products(
    model: nn.Module, products: Sequence[Products], batches: Sequence[Batch], processes: Processes
) -> dict[str, tuple[ProductMoments, ProductMoments]]:
    """What `measure_products` gives, of batches that processes share."""

    def measure(portion: range) -> list[torch.Tensor]:
        found = measure_products(model, products, [batches[number] for number in portion])
        return [tensor for both in found.values() for one in both for tensor in one.tensors().values()]

    sums = sum_portions(processes, cut_portions([batch.work for batch in batches], processes.count), measure)
    names = [each.name for each in fields(ProductMoments)]
    parts = [sums[start : start + len(names)] for start in range(0, len(sums), len(names))]
    moments = [ProductMoments(**dict(zip(names, part, strict=True))) for part in parts]
    return {one.name: (moments[2 * place], moments[2 * place + 1]) for place, one in enumerate(products)}


@torch.no_grad()
def refit_products(pruned: PrunedModel, batches: Sequence[Batch], processes: Processes = ALONE) -> dict[str, Refit]:
    """Give queries and keys that lost dimensions those that serve the data best, in place.

    Returns:
        By group name, the held-out squared error of the scores relative to their mean square, by the basis of the
        weights and by that of the data.
    """
    kind = head_dims_of(pruned.structure.kinds)
    narrowed = [] if kind is None else kind.narrowed(pruned.kept)
    heads = {one.name: list(pruned.kept.get(one.heads, range(one.count))) for one, _ in narrowed}
    narrowed = [(one, dims) for one, dims in narrowed if heads[one.name]]
    if not narrowed:
        return {}
    measured = share_products(pruned.original, [one for one, _ in narrowed], batches, processes)
    report = {}
    for one, dims in narrowed:
        mine, (fitted, judged) = heads[one.name], measured[one.name]
        first = range(len(dims))
        before = judged.error(_of(mine, one.basis(pruned.original)), dims, mine)
        after = judged.error(_of(mine, balanced_basis(*fitted.second_moments())), first, mine)
        kept = after < before
        report[one.name] = Refit(before=before, after=after, ridge=0.0, kept=kept)
        if kept:
            basis = _of(mine, balanced_basis(*fitted.plus(judged).second_moments()))
            for path, tensor in one.rotated(pruned.original, basis, mine, first).items():
                tensor_at(pruned.model, path).copy_(tensor)
    return report


def _of(heads: Sequence[int], basis: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    return basis[0][list(heads)], basis[1][list(heads)]
