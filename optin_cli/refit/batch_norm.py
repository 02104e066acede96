"""Measure the statistics of a pruned and refitted model's batch norms again.

A batch norm subtracts the mean of its input, so it can also hold the intercept that a convolution before it lacks.
"""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from optin_cli.artifacts.manifest import Refit
from optin_cli.data.batch import Batch
from optin_cli.model.cut import PrunedModel
from optin_cli.model.forward import call_model, final_outputs, hooks
from optin_cli.model.structure import Structure
from optin_cli.refit.design_matrix import Consumer
from optin_cli.refit.residual_stream import held_out
from optin_cli.refit.ridge import relative

STEPS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""How far statistics of batch norms are moved, as shares of the way from the stored to the measured ones."""


def batch_norms(model: nn.Module) -> dict[str, nn.BatchNorm2d]:
    """The batch norms of a model that keep statistics, by path."""
    found = {path: module for path, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    return {path: norm for path, norm in found.items() if norm.running_mean is not None}


@torch.no_grad()
def following_norms(model: nn.Module, structure: Structure, batch: Batch) -> dict[str, str]:
    """Paths of the batch norms whose input is a consumer's output, by the path of the consumer."""
    norms = batch_norms(model)
    outputs: dict[int, str] = {}
    kept: list[torch.Tensor] = []  # alive, so that no identity is used twice
    found: dict[str, str] = {}
    if not norms:
        return found
    with hooks() as hook:
        for path in {group.consumer for group in structure.groups}:

            def leave(_module: nn.Module, _inputs: object, output: torch.Tensor, path: str = path) -> None:
                kept.append(output)
                outputs[id(output)] = path

            hook.after(model.get_submodule(path), leave)
        for path, norm in norms.items():

            def arrive(_module: nn.Module, inputs: tuple[torch.Tensor, ...], path: str = path) -> None:
                if id(inputs[0]) in outputs:
                    found[outputs[id(inputs[0])]] = path

            hook.before(norm, arrive)
        call_model(model, {name: tensor[:1] for name, tensor in batch.inputs.items()})
    return found


@torch.no_grad()
def fold_bias(consumer: Consumer, norm: nn.BatchNorm2d) -> None:
    """Move a consumer's bias into the mean that the batch norm behind it subtracts."""
    if consumer.bias is not None and norm.running_mean is not None:
        norm.running_mean.sub_(consumer.bias)
        consumer.bias = None


@contextlib.contextmanager
def _measuring(norms: Sequence[nn.BatchNorm2d]) -> Iterator[None]:
    """Average the statistics of all batches that run meanwhile; nothing else of the batch norms changes."""
    saved = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    counts = [count if count is None else count.clone() for *_, count in saved]
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        yield
    finally:
        for (norm, momentum, count), before in zip(saved, counts, strict=True):
            norm.momentum = momentum
            if count is not None and before is not None:
                count.copy_(before)
            norm.eval()


@torch.no_grad()
def reestimate(pruned: PrunedModel, batches: Sequence[Batch]) -> Refit | None:
    """Measure batch-norm statistics again, and move the stored ones towards them as far as that helps.

    Least squares gives a layer whose input has errors a smaller output than it had. With statistics of the pruned model
    batch norms restore its size, but enlarge the errors too. So each of STEPS is tried, and the one that brings the
    held-out outputs closest to the original's is taken.

    Returns:
        The mean squared difference of held-out outputs before and after, relative to their size; None without batch
        norms.
    """
    model, rules = pruned.model, pruned.structure.outputs
    norms = batch_norms(model)
    if not norms:
        return None
    stored = {path: _statistics(norm) for path, norm in norms.items()}
    with _measuring(list(norms.values())):
        for batch in batches:
            fit = batch.where(~held_out(batch))
            if fit.size > 1:
                call_model(model, fit.inputs)
    measured = {path: _statistics(norm) for path, norm in norms.items()}

    def move(step: float) -> None:
        for path, norm in norms.items():
            _set_statistics(norm, stored[path], measured[path], step)

    squares, size = [0.0 for _ in STEPS], 0.0
    for batch in batches:
        judged = batch.where(held_out(batch))
        if not judged.size:
            continue
        theirs = [
            output.double() for output in final_outputs(call_model(pruned.original, judged.inputs), rules, judged)
        ]
        size += sum(float(output.square().sum()) for output in theirs)
        for number, step in enumerate(STEPS):
            move(step)
            mine = final_outputs(call_model(model, judged.inputs), rules, judged)
            squares[number] += sum(float((m - t).square().sum()) for m, t in zip(mine, theirs, strict=True))
    errors = [relative(square, size) for square in squares]
    best = errors.index(min(errors))
    move(STEPS[best])
    return Refit(before=errors[0], after=errors[best], ridge=0.0, kept=best > 0)


def _statistics(norm: nn.BatchNorm2d) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance that a batch norm holds."""
    assert norm.running_mean is not None and norm.running_var is not None
    return norm.running_mean.clone(), norm.running_var.clone()


def _set_statistics(
    norm: nn.BatchNorm2d,
    stored: tuple[torch.Tensor, torch.Tensor],
    measured: tuple[torch.Tensor, torch.Tensor],
    step: float,
) -> None:
    """Let a batch norm hold statistics `step` of the way from those stored to those measured, exactly at both ends.

    Means change by a difference and variances by a factor.
    """
    assert norm.running_mean is not None and norm.running_var is not None
    mean, variance = measured if step == 1 else stored
    if 0 < step < 1:
        factor = (measured[1] + norm.eps) / (variance + norm.eps)
        mean, variance = torch.lerp(mean, measured[0], step), (variance + norm.eps) * factor**step - norm.eps
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
