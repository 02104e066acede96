"""Weights, or gradients of a loss, in; baseline importances out: magnitude, random, and diagonal Fisher."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from optin_cli.data import Batch
from optin_cli.errors import DataError
from optin_cli.masking import gated
from optin_cli.structure import Group, Structure, tensor_at


def magnitude(model: nn.Module, group: Group) -> torch.Tensor:
    """Sum of squared weights of each unit: (units,)."""
    total = torch.zeros(group.units, dtype=torch.float64)
    for piece in group.slices:
        tensor = tensor_at(model, piece.parameter).detach().double().cpu()
        rows = tensor.movedim(piece.axis, 0).reshape(piece.parts, group.units, -1)
        total += rows.square().sum(dim=(0, 2))
    return total


def random_importance(group: Group, seed: int) -> torch.Tensor:
    """Uniform numbers drawn from the seed and the group's name, so that no other group matters: (units,)."""
    digest = hashlib.sha256(f"{seed}/{group.name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.rand(group.units, generator=generator, dtype=torch.float64)


def fisher_batch(
    model: nn.Module, structure: Structure, groups: Sequence[Group], batch: Batch
) -> dict[str, torch.Tensor]:
    """Squared gradient of the task loss by each unit's gate, for every sample (Kwon et al. 2022, eq. 8).

    Returns:
        (rows, units) float64 by group name.

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
        logits = model(**batch.inputs)[rule.name]
        if rule.kind == "real" and logits.shape[-1] == 1:
            loss = F.mse_loss(logits.squeeze(-1), batch.labels.to(logits.dtype), reduction="sum")
        elif rule.kind == "categorical" and logits.dim() == 2 and rule.over == "classes":
            loss = F.cross_entropy(logits, batch.labels.long(), reduction="sum")
        else:
            raise DataError(
                f"The fisher criterion knows no loss for the output {rule.name} with one label a sample.",
                hint="Use --criterion trajectory, which needs no labels.",
            )
        gradients = torch.autograd.grad(loss, list(gates.values()))
    return {g.name: d.detach().double().square().cpu() for g, d in zip(groups, gradients, strict=True)}
