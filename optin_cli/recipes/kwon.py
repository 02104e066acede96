"""Kwon et al. 2022, "A fast post-training pruning framework for transformers" (arXiv 2204.09656).

With g_s the gradient of sample s's loss by the masks at m = 1, I = mean_s g_s g_s^T their empirical Fisher matrix:

1. Mask search: with the diagonal of I, the best heads of all layers and the best other units under the FLOP
   budget, for the best split between the two (their Algorithm 1).
2. Mask rearrangement: per group, keeping the number of pruned units, swap a pruned with a kept unit as long as
   that lowers 1/2 (1 - m)^T I_group (1 - m), for the pruned units in turn (block-diagonal Fisher).
3. Mask tuning: per group from the bottom up, the masks of the kept units become the real numbers m = 1 + r of

       min_r ||A^T A r - A^T (b - A 1)||^2 + damp^2 ||r||^2

   where column u of A is x_u W_u, what unit u puts into the consumer's output in the pruned model, and b the
   original's consumer output plus residual stream less the pruned model's residual stream. When a value
   leaves [-10, 10] it is discarded, and tuning stops there. Masks are folded into the consumers' weights.

A^T A and A^T b follow from the consumer's normal equations: A^T A = (X^T X) * (W W^T) summed over each unit's
columns. Simplifications: the damped problem, which the authors give to LSMR, is solved directly; the first
layer's heads are tuned too, and the last layer on all tokens, where the authors leave the former out and use the
first token for the latter.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from optin_cli.artifacts.base import Vector64
from optin_cli.artifacts.manifest import Refit
from optin_cli.artifacts.mask import Kept
from optin_cli.model.cut import PrunedModel
from optin_cli.model.linear import weight_by_outputs
from optin_cli.model.units import Group
from optin_cli.recipes.recipe import Decision, Prepared, Recipe, Setting
from optin_cli.refit.refit import linear, normal_equations
from optin_cli.refit.residual_stream import RefitRun, refitting
from optin_cli.refit.ridge import Normal, relative
from optin_cli.scoring.baselines import loss_gradients
from optin_cli.searching.choose import choose_units
from optin_cli.searching.limits import Limits

DAMP = 1.0
"""How strongly tuned masks are drawn to 1, in units of the normal equations' residual (the authors' value)."""
BOUND = 10.0
"""Largest size of a tuned mask."""


def mask_gradients(setting: Setting) -> dict[str, Vector64]:
    """Gradients of every calibration sample's loss by the masks: (samples, units) by group name."""
    checkpoint = setting.checkpoint
    model, structure, batches = checkpoint.model, checkpoint.structure, setting.calibration.batches
    parts = []
    for number, batch in enumerate(batches):
        setting.progress.update(number, len(batches), "fisher")
        parts.append(loss_gradients(model, structure, structure.groups, batch.to(checkpoint.device)))
    return {group.name: torch.cat([rows[group.name] for rows in parts]).numpy() for group in structure.groups}


def rearrange(fisher: Vector64, pruned: Sequence[int]) -> list[int]:
    """Swap pruned with kept units as long as a swap lowers 1/2 (1 - m)^T I (1 - m), with I of shape (units, units).

    Returns the pruned units, ascending. No single swap betters the result; it need not be the best of all sets.
    """
    gone = np.zeros(len(fisher), dtype=bool)
    gone[list(pruned)] = True
    slope = fisher[:, gone].sum(axis=1)
    diagonal = fisher.diagonal()
    least = 1e-12 * float(diagonal.max(initial=0.0))
    swapped = True
    while swapped:
        swapped = False
        for unit in np.flatnonzero(gone):
            kept = np.flatnonzero(~gone)
            if not kept.size:
                break
            change = slope[kept] - slope[unit] + 0.5 * (diagonal[kept] + diagonal[unit]) - fisher[unit, kept]
            best = int(np.argmin(change))
            if change[best] < -least:
                other = kept[best]
                gone[unit], gone[other] = False, True
                slope += fisher[other] - fisher[unit]
                swapped = True
    return [int(unit) for unit in np.flatnonzero(gone)]


def rearrange_all(kept: Kept, gradients: Mapping[str, Vector64]) -> Kept:
    """Rearrange every group by its block of the Fisher matrix."""
    result: Kept = {}
    for name, units in kept.items():
        rows = gradients[name]
        pruned = rearrange(rows.T @ rows / len(rows), sorted(set(range(rows.shape[1])) - set(units)))
        result[name] = sorted(set(range(rows.shape[1])) - set(pruned))
    return result


def solve_masks(
    normal: Normal, weight: torch.Tensor, bias: torch.Tensor | None, unit_width: int, *, damp: float = DAMP
) -> torch.Tensor:
    """Masks of the kept units that reconstruct the consumer's target best: (units,).

    Args:
        normal: equations of the consumer's input, with a last column of ones if there is a bias.
        weight: (columns, outputs), of the consumer. bias: (outputs,).
    """
    columns = weight.shape[0]
    cross = normal.cross[:columns]
    if bias is not None:
        cross = cross - normal.gram[:columns, columns:] @ bias[None]
    units = columns // unit_width
    square = normal.gram[:columns, :columns] * (weight @ weight.T)
    square = square.reshape(units, unit_width, units, unit_width).sum((1, 3))
    target = (cross * weight).sum(dim=1).reshape(units, unit_width).sum(dim=1)
    damped = square @ square + damp**2 * torch.eye(units, dtype=square.dtype, device=square.device)
    offset: torch.Tensor = torch.linalg.solve(damped, square @ (target - square.sum(dim=1)))
    return 1.0 + offset


def tune_consumer(run: RefitRun, group: Group) -> Refit:
    """Fold masks of all samples into one consumer if none is out of bounds; errors are of masks of the others alone."""
    consumer = linear(run.pruned.model, group)
    fitted, judged, size = normal_equations(run, group)
    weight = weight_by_outputs(consumer).detach().double().T
    bias = None if consumer.bias is None else consumer.bias.detach().double()

    def error(masks: torch.Tensor) -> float:
        scaled = weight * masks.repeat_interleave(group.unit_width)[:, None]
        return relative(judged.error(scaled if bias is None else torch.cat([scaled, bias[None]])), size)

    masks = solve_masks(fitted.plus(judged), weight, bias, group.unit_width)
    kept = bool(masks.abs().max() <= BOUND)
    if kept:
        with torch.no_grad():
            weight_by_outputs(consumer).mul_(masks.repeat_interleave(group.unit_width).to(consumer.weight.dtype))
    return Refit(
        before=error(torch.ones_like(masks)),
        after=error(solve_masks(fitted, weight, bias, group.unit_width)),
        ridge=DAMP,
        kept=kept,
    )


def tune_masks(setting: Setting, model: nn.Module, kept: Kept) -> dict[str, Refit]:
    """Tune the masks of a pruned model's groups in place, from the first pruned one on, until one is out of bounds."""
    pruned = PrunedModel(setting.checkpoint.model, model, setting.checkpoint.structure, kept)
    report: dict[str, Refit] = {}
    changed = False
    with refitting(pruned, setting.calibration.batches) as run:
        for number, group in enumerate(run.calls):
            changed = changed or len(kept[group.name]) < group.units
            if changed and kept[group.name]:
                setting.progress.update(number, len(run.calls), group.name)
                run.advance(group)
                report[group.name] = tune_consumer(run, group)
                if not report[group.name].kept:
                    break
    return report


def prepare_kwon(setting: Setting) -> Prepared:
    """Measure the Fisher matrices; each budget then searches, rearranges and tunes."""
    gradients = mask_gradients(setting)
    importance = {name: np.square(rows).mean(axis=0).astype(np.float32) for name, rows in gradients.items()}

    def decide(limits: Limits) -> Decision:
        found = choose_units(importance, setting.slice_costs, limits, algorithm="optin")
        kept = rearrange_all(found, gradients)
        return Decision(kept, lambda model: tune_masks(setting, model, kept))

    return Prepared(decide)


KWON = Recipe("kwon", prepare_kwon, needs_labels=True)
