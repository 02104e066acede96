"""A cut model, the original and calibration batches in; the cut model's consumers re-solved by least squares out.

Walking the consumers in execution order, each gets the weights and bias that make the residual stream after it
most like the original's, given what the already re-solved part of the cut model feeds it:

    W = argmin ||X W + b - Y||^2 + mu ||W - W0||^2,   Y = S - R

X: the consumer's input in the cut model; S: the original's sum of consumer output and residual stream; R: the
cut model's residual stream, so that errors of earlier cuts are corrected too (error feedback). Only normal
equations are kept, in float64, so memory does not grow with the data.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from optin_cli.artifacts import Refit
from optin_cli.data import Batch
from optin_cli.errors import ArchitectureError, DataError
from optin_cli.observe import call_model, first_tensor
from optin_cli.structure import Group, Structure

HOLDOUT = 4
"""One sample in so many is held out to judge a refit."""
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)
"""Values of mu, relative to the mean diagonal of X^T X, of which the one with least held-out error is taken."""


class _Reached(Exception):  # noqa: N818 - a signal, not an error
    """The forward pass has run as far as it is needed."""


@dataclass
class Normal:
    """Normal equations of X W = Y over rows: gram X^T X (k, k), cross X^T Y (k, d), total ||Y||^2, rows."""

    gram: torch.Tensor
    cross: torch.Tensor
    total: float
    rows: int

    @classmethod
    def zeros(cls, width: int, outputs: int, device: torch.device) -> Normal:
        """No rows yet."""
        gram = torch.zeros(width, width, dtype=torch.float64, device=device)
        return cls(gram, gram.new_zeros(width, outputs), 0.0, 0)

    def add(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Take in rows x (n, k) and y (n, d)."""
        self.gram += x.T @ x
        self.cross += x.T @ y
        self.total += float(y.square().sum())
        self.rows += x.shape[0]

    def plus(self, other: Normal) -> Normal:
        """Both sets of rows."""
        return Normal(
            self.gram + other.gram, self.cross + other.cross, self.total + other.total, self.rows + other.rows
        )

    def error(self, weight: torch.Tensor) -> float:
        """Mean over rows of ||x W - y||^2 for weight (k, d)."""
        squared = (weight * (self.gram @ weight - 2 * self.cross)).sum() + self.total
        return max(float(squared), 0.0) / max(self.rows, 1)


def solve_ridge(normal: Normal, start: torch.Tensor, ridge: float, *, bias: bool) -> torch.Tensor:
    """Minimise ||X W - Y||^2 + mu ||W - start||^2, mu = ridge x mean diagonal of the Gram matrix: (k, d).

    With `bias`, the last column of X is constant 1 and is not drawn to its start.
    """
    mean = normal.gram.diagonal()[: -1 if bias else None].mean() if normal.gram.shape[0] > bias else 1.0
    pull = torch.full_like(normal.gram[0], float(ridge * mean))
    if bias:
        pull[-1] = 1e-9 * max(float(normal.gram[-1, -1]), 1.0)
    matrix = normal.gram + torch.diag(pull)
    target = normal.cross + pull[:, None] * start
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if int(failed):
        return torch.matmul(torch.linalg.pinv(matrix, hermitian=True), target)
    solution: torch.Tensor = torch.cholesky_solve(target, factor)
    return solution


@contextlib.contextmanager
def _hooks(*handles: torch.utils.hooks.RemovableHandle) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def gather(
    model: nn.Module, group: Group, batch: Batch, calls: int
) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
    """Run a model up to where a consumer's output has joined the residual stream for the last of its `calls`.

    Returns:
        (inputs, outputs, sums), one tensor a call of the consumer (several where weights are shared), each
        (rows, tokens, width).
    """
    inputs: list[torch.Tensor] = []
    outputs: list[torch.Tensor] = []
    sums: list[torch.Tensor] = []

    def on_consumer(_module: nn.Module, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        inputs.append(arguments[0])
        outputs.append(output)

    def arrive(total: torch.Tensor) -> None:
        sums.append(total)
        if calls == len(sums):
            raise _Reached

    def on_sum(_module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        arrive(arguments[0])

    def on_block(_module: nn.Module, _arguments: object, output: object) -> None:
        arrive(first_tensor(output))

    if group.residual_sum is not None:
        last = model.get_submodule(group.residual_sum).register_forward_pre_hook(on_sum)
    else:
        last = model.get_submodule(group.block_path).register_forward_hook(on_block)
    consumer = model.get_submodule(group.consumer)
    with _hooks(consumer.register_forward_hook(on_consumer), last), contextlib.suppress(_Reached), torch.no_grad():
        call_model(model, batch.inputs)
    return inputs, outputs, sums


def linear(model: nn.Module, group: Group) -> nn.Linear:
    """The consumer of a group.

    Raises:
        ArchitectureError: it is not a linear layer, which is all that least squares here can re-solve.
    """
    consumer = model.get_submodule(group.consumer)
    if not isinstance(consumer, nn.Linear):
        raise ArchitectureError(
            f"The consumer {group.consumer} is a {type(consumer).__name__}; refit re-solves linear layers only.",
            hint="Pass --no-refit.",
        )
    return consumer


def consumer_calls(model: nn.Module, structure: Structure, batch: Batch) -> dict[Group, int]:
    """How often each consumer runs in a forward pass, in the order of their first runs."""
    counts: dict[Group, int] = {}
    handles = []
    for group in structure.groups:

        def count(_module: nn.Module, _arguments: object, group: Group = group) -> None:
            counts[group] = counts.get(group, 0) + 1

        handles.append(model.get_submodule(group.consumer).register_forward_pre_hook(count))
    with _hooks(*handles), torch.no_grad():
        call_model(model, batch.inputs)
    return counts


def held_out(batch: Batch) -> torch.Tensor:
    """Which samples of a batch judge the refit, by their keys and so independent of order: (rows,) bool."""
    digests = (hashlib.sha256(key.encode()).digest() for key in batch.keys)
    return torch.tensor([digest[0] % HOLDOUT == 0 for digest in digests], device=batch.device)


def normal_equations(
    original: nn.Module, model: nn.Module, group: Group, batches: Sequence[Batch], calls: int
) -> tuple[Normal, Normal, float]:
    """Stream the normal equations of one consumer.

    Returns:
        (training, held-out) equations, and the held-out mean of ||S||^2 that errors are stated relative to.
    """
    consumer = linear(model, group)
    fitted: Normal | None = None
    judged: Normal | None = None
    size = 0.0
    for batch in batches:
        xs, outs, sums = gather(model, group, batch, calls)
        _, _, targets = gather(original, group, batch, calls)
        judge = held_out(batch)
        for x, out, total, target in zip(xs, outs, sums, targets, strict=True):
            rows = torch.cat([x, x.new_ones(*x.shape[:-1], 1)], dim=-1) if consumer.bias is not None else x
            y = target - (total - out)
            for chosen, mine in (
                (batch.mask_for(x) & ~judge[:, None], "fit"),
                (batch.mask_for(x) & judge[:, None], "judge"),
            ):
                wide_x, wide_y = rows[chosen].double(), y[chosen].double()
                if fitted is None or judged is None:
                    fitted = Normal.zeros(wide_x.shape[1], wide_y.shape[1], wide_x.device)
                    judged = Normal.zeros(wide_x.shape[1], wide_y.shape[1], wide_x.device)
                if mine == "fit":
                    fitted.add(wide_x, wide_y)
                else:
                    judged.add(wide_x, wide_y)
                    size += float(target[chosen].double().square().sum())
    if fitted is None or judged is None or not fitted.rows or not judged.rows:
        raise DataError(
            "Too few calibration samples to refit: one in four is held out and none was left.",
            hint="Pass more samples, or --no-refit.",
        )
    return fitted, judged, size / judged.rows


def refit_consumer(
    original: nn.Module, model: nn.Module, group: Group, batches: Sequence[Batch], calls: int, ridge: float | None
) -> Refit:
    """Re-solve one consumer in place, unless that does not lower its held-out error.

    Args:
        ridge: mu relative to the mean diagonal of X^T X; None chooses among RIDGES by held-out error.
    """
    consumer = linear(model, group)
    bias = consumer.bias is not None
    fitted, judged, size = normal_equations(original, model, group, batches, calls)
    start = consumer.weight.detach().double().T
    if consumer.bias is not None:
        start = torch.cat([start, consumer.bias.detach().double()[None]])
    before = judged.error(start)
    trials = {mu: judged.error(solve_ridge(fitted, start, mu, bias=bias)) for mu in ([ridge] if ridge else RIDGES)}
    best = min(trials, key=lambda mu: trials[mu])
    kept = trials[best] < before
    if kept:
        solution = solve_ridge(fitted.plus(judged), start, best, bias=bias).to(consumer.weight.dtype)
        with torch.no_grad():
            consumer.weight.copy_((solution[:-1] if bias else solution).T)
            if consumer.bias is not None:
                consumer.bias.copy_(solution[-1])
    return Refit(before=before / size, after=trials[best] / size, ridge=best, kept=kept)


def refit_model(
    original: nn.Module,
    model: nn.Module,
    structure: Structure,
    kept: Mapping[str, Sequence[int]],
    batches: Sequence[Batch],
    *,
    ridge: float | None = None,
    tell: Callable[[float, float, str], None] = lambda _done, _total, _what: None,
) -> dict[str, Refit]:
    """Re-solve every consumer of a cut model in place, from the first cut group on.

    Args:
        structure: of the original; paths are the same in the cut model.
        kept: the kept units that `model` was cut by.

    Returns:
        by group name, in execution order: held-out error before and after relative to the mean squared size of
        the residual stream, and whether the new weights were taken.
    """
    order = consumer_calls(original, structure, batches[0])
    report: dict[str, Refit] = {}
    changed = False
    for number, (group, calls) in enumerate(order.items()):
        changed = changed or len(kept.get(group.name, range(group.units))) < group.units
        if changed:
            tell(number, len(order), group.name)
            report[group.name] = refit_consumer(original, model, group, batches, calls, ridge)
    return report
