"""Sketch of the trajectory importance: second order, of all units at once, in a few backward passes.

Near gates m = 1 the importance is a quadratic form in the perturbation. For a random scalar S whose gradient
has that form as its second moment, E[(dS/dm_u)^2] is the importance of unit u, for all units at once.
With Rademacher r, q, e per sample and probe, F_z the normalised tokens of block z and p the output distribution:

    S = sum_z (r_z^T F_z) . (q_z^T F_z) / T  +  sqrt(weight) . factor(p, e) . outputs

since E[(r^T M q)^2] = ||M||_F^2 for the manifold term, and for the outputs KL is to second order half the
Fisher quadratic form, of which factor(p, e) is a random square root. Cross terms vanish.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from optin_cli.architectures.schema import OutputRule
from optin_cli.data.batch import Batch, keyed_generator
from optin_cli.model.forward import Trajectory, observe, per_token, recording
from optin_cli.model.masking import gated
from optin_cli.model.readout import read_out, reads_tokens
from optin_cli.model.structure import Structure
from optin_cli.options.scoring import CRITERIA, ScoreOptions
from optin_cli.scoring.distances import gram_projection
from optin_cli.scoring.vocabulary import token_signs, vocabulary_pull


@dataclass(frozen=True)
class Objective:
    """Weights of the trajectory distance.

    manifold, output: weights of the two terms (`output` is lambda); temperature softens output distributions.
    """

    manifold: float
    output: float
    temperature: float

    @classmethod
    def of(cls, options: ScoreOptions) -> Objective:
        """Those of a trajectory criterion and its options."""
        manifold, output = CRITERIA[options.criterion].terms or (1.0, 1.0)
        return cls(manifold, output * options.output_weight, options.temperature)


def fisher_factor(probabilities: torch.Tensor, signs: torch.Tensor) -> torch.Tensor:
    """Random vectors v with E[v v^T] = diag(p) - p p^T, over the last axis.

    For Rademacher e: v = sqrt(p) e - p (sqrt(p) . e). Less noisy than drawing a class y and taking e_y - p,
    which is the same in expectation.
    """
    spread = probabilities.sqrt() * signs
    return spread - probabilities * spread.sum(dim=-1, keepdim=True)


def output_projection(
    output: torch.Tensor, signs: torch.Tensor, rule: OutputRule, temperature: float, batch: Batch
) -> torch.Tensor:
    """Scalar a row, (rows,), whose squared gradient is in expectation the second-order output distance.

    Args:
        output: (rows, classes) or (rows, tokens, classes).
        signs: Rademacher, shaped as `output`.
    """
    scaled = output / temperature
    projected: torch.Tensor
    if rule.kind == "categorical":
        factor = fisher_factor(torch.softmax(scaled.detach(), dim=-1), signs)
        scaled = torch.where(scaled.isinf(), 0.0, scaled)
        projected = (factor * scaled).sum(dim=-1) * temperature * 0.5**0.5
    elif rule.kind == "bernoulli":
        p = torch.sigmoid(scaled.detach())
        classes = output.shape[-1]
        projected = ((p * (1 - p)).sqrt() * signs * scaled).sum(dim=-1) * temperature * (0.5 / classes) ** 0.5
    else:
        projected = (signs * output).sum(dim=-1) / output.shape[-1] ** 0.5
    if projected.dim() == 1:
        return projected
    weights = batch.mask_for(output).to(projected.dtype) if per_token(output, rule) else torch.ones_like(projected)
    averaged: torch.Tensor = (projected * weights).sum(dim=1) / weights.sum(dim=1).sqrt()
    return averaged


def _signs(shape: Sequence[int], generators: Sequence[torch.Generator], where: torch.Tensor) -> torch.Tensor:
    """Rademacher (rows, *shape, tokens) where true, zero elsewhere.

    Each row draws from its own generator and as many as it needs, so that neither padding nor the other samples of the
    batch change what a sample draws.
    """
    out = torch.zeros(len(generators), *shape, where.shape[1])
    for row, generator in enumerate(generators):
        drawn = torch.randint(0, 2, (*shape, int(where[row].sum())), generator=generator)
        out[row, ..., where[row]] = drawn * 2.0 - 1.0
    return out


def probe_scalar(
    trajectory: Trajectory, structure: Structure, batch: Batch, objective: Objective, seed: int, probe: int
) -> torch.Tensor:
    """S of every row: (rows,)."""
    device = trajectory.features[0].device
    generators = [keyed_generator(seed, key, probe) for key in batch.keys]
    total = torch.zeros(batch.size, device=device)
    if objective.manifold:
        for _, run in itertools.groupby(trajectory.features, key=lambda features: features.shape[1]):
            alike = list(run)
            token_mask = batch.mask_for(alike[0])
            signs = _signs((2, len(alike)), generators, token_mask.cpu()).to(device)
            for z, features in enumerate(alike):
                projected = gram_projection(features, signs[:, :, z].transpose(0, 1))
                total = total + objective.manifold**0.5 * projected / token_mask.sum(dim=1)
    if objective.output:
        for output, rule in zip(trajectory.outputs, structure.outputs, strict=True):
            if rule.over == "tokens":
                signs = _signs((), generators, batch.mask_for(output).cpu())
            elif per_token(output, rule):
                signs = _signs((output.shape[2],), generators, batch.mask_for(output).cpu()).transpose(1, 2)
            else:
                signs = _signs((), generators, torch.ones(output.shape, dtype=torch.bool))
            projected = output_projection(output, signs.to(device), rule, objective.temperature, batch)
            total = total + (objective.output * rule.weight) ** 0.5 * projected
    return total


def probe_scalars(
    model: nn.Module, structure: Structure, batch: Batch, objective: Objective, *, probes: int, seed: int
) -> Iterator[tuple[int, torch.Tensor]]:
    """Run the model once, and give S of every row (rows,) for one probe after another, with how many are left.

    Of a tokenwise output only the gradient at the last hidden states is taken, some tokens at a time
    (`scoring.vocabulary`).
    """
    if not reads_tokens(structure) or not objective.output:
        trajectory = observe(model, structure, batch)
        for probe in range(probes):
            yield probes - probe - 1, probe_scalar(trajectory, structure, batch, objective, seed, probe)
        return
    with recording(model, structure, batch.size) as features:
        readout = read_out(model, structure, batch)
    trajectory, rest = Trajectory(features, []), replace(objective, output=0.0)
    scale = (objective.output * structure.outputs[0].weight) ** 0.5
    pull = vocabulary_pull(readout, batch, objective.temperature, seed) * scale
    for probe in range(probes):
        signs = torch.stack([token_signs(key, seed, probe, pull.shape[1]) for key in batch.keys]).to(pull)
        projected = (readout.hidden * pull * signs[:, :, None]).sum(dim=(1, 2))
        yield probes - probe - 1, probe_scalar(trajectory, structure, batch, rest, seed, probe) + projected


def sketch_batch(
    model: nn.Module, structure: Structure, batch: Batch, objective: Objective, *, probes: int, seed: int
) -> dict[str, torch.Tensor]:
    """Estimate the importance of a structure's units by backward passes.

    Args:
        batch: samples; each is an independent probe, so batching does not change the expectation.
        probes: backward passes; the relative standard error falls as sqrt(2 / (samples * probes)).

    Returns:
        (rows, units) float64 of non-negative importances, by group name.
    """
    device, groups = next(model.parameters()).device, structure.groups
    how = {"probes": probes, "seed": seed}
    gates = {g: torch.ones(batch.size, g.units, device=device, requires_grad=True) for g in groups}
    sums = {g.name: torch.zeros(batch.size, g.units, dtype=torch.float64, device=device) for g in groups}
    with torch.enable_grad(), gated(model, gates):
        for left, scalar in probe_scalars(model, structure, batch, objective, **how):
            gradients = torch.autograd.grad(
                scalar.sum(), list(gates.values()), retain_graph=left > 0, allow_unused=True
            )
            for group, gradient in zip(groups, gradients, strict=True):
                if gradient is not None:
                    sums[group.name] += gradient.detach().double().square()
    return {name: (total / probes).cpu() for name, total in sums.items()}
