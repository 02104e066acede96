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
    """Average the statistics of all batches that run meanwhile; the mode of the batch norms is restored."""
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()


@torch.no_grad()
def reestimate(pruned: PrunedModel, batches: Sequence[Batch]) -> Refit | None:
    """Measure batch-norm statistics again, and keep those that bring the held-out outputs closer to the original's.

    Errors are mean squared differences of the outputs, relative to their size; None without batch norms.
    """
    model, rules = pruned.model, pruned.structure.outputs
    norms = batch_norms(model)
    if not norms:
        return None

    def distance() -> float:
        error = size = 0.0
        for batch in batches:
            judge = held_out(batch)
            pairs = (final_outputs(call_model(m, batch.inputs), rules, batch) for m in (model, pruned.original))
            for mine, theirs in zip(*pairs, strict=True):
                error += float((mine - theirs)[judge].double().square().sum())
                size += float(theirs[judge].double().square().sum())
        return relative(error, size)

    before = distance()
    stored = {path: {k: v.clone() for k, v in norm.state_dict().items()} for path, norm in norms.items()}
    with _measuring(list(norms.values())):
        for batch in batches:
            fit = ~held_out(batch)
            if int(fit.sum()) > 1:
                call_model(model, {name: tensor[fit] for name, tensor in batch.inputs.items()})
    after = distance()
    if after >= before:
        for path, norm in norms.items():
            norm.load_state_dict(stored[path])
    return Refit(before=before, after=after, ridge=0.0, kept=after < before)
