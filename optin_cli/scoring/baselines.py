"""Baseline criteria: magnitude, random, Wanda and Fisher."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from optin_cli.data.batch import Batch, keyed_generator
from optin_cli.errors import DataError
from optin_cli.model.forward import call_model, embed_hidden, hooks
from optin_cli.model.lookup import tensor_at
from optin_cli.model.masking import gated
from optin_cli.model.readout import run_hidden
from optin_cli.model.structure import Structure
from optin_cli.model.units import Group


def magnitude(model: nn.Module, group: Group) -> torch.Tensor:
    """Sum of squared weights of each unit: (units,)."""
    total = torch.zeros(group.units, dtype=torch.float64)
    for piece in group.slices:
        tensor = tensor_at(model, piece.parameter).detach().double().cpu()
        each = tensor.movedim(piece.axis, 0).reshape(tensor.shape[piece.axis], -1).square().sum(dim=1)
        for part in torch.split(each, [group.units * width for width in piece.widths]):
            total += part.reshape(group.units, -1).sum(dim=1)
    return total


def random_importance(group: Group, seed: int) -> torch.Tensor:
    """Uniform numbers drawn from the seed and the group's name, so that no other group matters: (units,)."""
    return torch.rand(group.units, generator=keyed_generator(seed, group.name), dtype=torch.float64)


def consumer_columns(model: nn.Module, group: Group) -> torch.Tensor:
    """Weights by which the consumer reads each column of its input: (units, unit width, outputs)."""
    axis = next(piece.axis for piece in group.slices if piece.parameter == group.reads)
    return tensor_at(model, group.reads).detach().movedim(axis, 0).reshape(group.units, group.unit_width, -1)


@contextlib.contextmanager
def unit_energies(model: nn.Module, groups: Sequence[Group], batch: Batch) -> Iterator[dict[str, torch.Tensor]]:
    """Collect, while the model runs, how much each unit puts into its consumer's output: (rows, units) by group.

    sum_c ||x_c||^2 ||w_c||^2, with x_c the input's columns of a unit over the tokens and w_c the weights that read
    them. Calls of shared weights add up.
    """
    energies: dict[str, torch.Tensor] = {}
    with hooks() as hook:
        for group in groups:
            weights = consumer_columns(model, group).float().square().sum(dim=2)

            def collect(_module: nn.Module, inputs: Any, g: Group = group, w: torch.Tensor = weights) -> None:
                x = g.rows_first(inputs[0].detach().float()).movedim(g.axis, -1)
                x = x.reshape(batch.size, -1, x.shape[-1])
                real = batch.mask_for(x)
                real = real.repeat_interleave(x.shape[1] // real.shape[1], dim=1)  # tokens go to several experts
                x = (x * real.unsqueeze(-1)).reshape(*x.shape[:2], g.units, g.unit_width)
                energy = (x.square().sum(dim=1) * w).sum(dim=2)
                energies[g.name] = energies.get(g.name, 0.0) + energy.double().cpu()

            hook.before(model.get_submodule(group.entry), collect)
        yield energies


def wanda_batch(
    model: nn.Module, structure: Structure, groups: Sequence[Group], batch: Batch
) -> dict[str, torch.Tensor]:
    """Squared norm of a column's input times that of its weights, summed over each unit's columns: (rows, units).

    Wanda (Sun et al. 2023, eq. 1) judges a weight by |W| ||x||; squared, it adds up over the weights of a column,
    the columns of a unit, and samples.
    """
    with torch.no_grad(), unit_energies(model, groups, batch) as energies:
        run_hidden(model, structure, batch.inputs)
    return energies


def fisher_batch(
    model: nn.Module, structure: Structure, groups: Sequence[Group], batch: Batch
) -> dict[str, torch.Tensor]:
    """Squares of `loss_gradients`: the diagonal of each sample's Fisher matrix (Kwon et al. 2022, eq. 8)."""
    return {name: d.square() for name, d in loss_gradients(model, structure, groups, batch).items()}


def loss_gradients(
    model: nn.Module, structure: Structure, groups: Sequence[Group], batch: Batch
) -> dict[str, torch.Tensor]:
    """Gradient of each sample's task loss by each unit's gate: (rows, units), or (pairs, units), float64 by group name.

    The loss of a pair is the squared error of the cosine of its embeddings.

    Raises:
        DataError: the samples have no labels.
    """
    if batch.labels is None:
        raise DataError(
            "The fisher criterion needs labels, and the calibration data has none.",
            hint="Name their column with --label-column, or use --criterion trajectory, which needs no labels.",
        )
    rule = structure.outputs[0]
    device = next(model.parameters()).device
    gates = {g: torch.ones(batch.size, g.units, device=device, requires_grad=True) for g in groups}
    with torch.enable_grad(), gated(model, gates):
        logits = call_model(model, batch.inputs)[rule.name].float()
        if batch.paired:
            first, second = embed_hidden(logits, structure, batch).chunk(2)
            found = F.cosine_similarity(first, second)
            loss = F.mse_loss(found, batch.labels.to(found.dtype), reduction="sum")
        elif rule.kind == "real" and logits.shape[-1] == 1:
            loss = F.mse_loss(logits.squeeze(-1), batch.labels.to(logits.dtype), reduction="sum")
        elif rule.kind == "categorical" and logits.dim() == 2 and rule.over == "classes":
            loss = F.cross_entropy(logits, batch.labels.long(), reduction="sum")
        else:
            raise DataError(
                f"The fisher criterion knows no loss for the output {rule.name} with one label a sample.",
                hint="Use --criterion trajectory, which needs no labels.",
            )
        gradients = torch.autograd.grad(loss, list(gates.values()))
    # A pair is one sample, whose texts share the gates.
    each = [torch.stack(d.chunk(2)).sum(dim=0) if batch.paired else d for d in gradients]
    return {g.name: d.detach().double().cpu() for g, d in zip(groups, each, strict=True)}
