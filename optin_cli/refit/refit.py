"""A cut model, the original and calibration batches in; the cut model's consumers re-solved by least squares out.

Walking the consumers in execution order, each gets the weights and bias that make the residual stream after it
most like the original's, given what the already re-solved part of the cut model feeds it:

    W = argmin ||X W + b - Y||^2 + mu ||W - W0||^2,   Y = S - R

X: the consumer's input in the cut model; S: the original's sum of consumer output and residual stream; R: the
cut model's residual stream, so that errors of earlier cuts are corrected too (error feedback). Only normal
equations are kept, in float64, so memory does not grow with the data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from optin_cli.artifacts.manifest import Refit
from optin_cli.data.batch import Batch
from optin_cli.errors import ArchitectureError, DataError
from optin_cli.model.structure import Group, Structure
from optin_cli.model.tokens import merged_before
from optin_cli.progress import SILENT, Progress
from optin_cli.refit.batch_norm import batch_norms, fold_bias, following_norms, reestimate
from optin_cli.refit.design_matrix import Consumer, set_weight_matrix, weight_matrix, why_not
from optin_cli.refit.residual_stream import Known, consumer_calls, kept_outputs, knowing, stream_rows
from optin_cli.refit.ridge import Normal, solve_ridge

BATCH_NORM = "batch_norm"


RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)
"""Values of mu, relative to the mean diagonal of X^T X, of which the one with least held-out error is taken."""


def linear(model: nn.Module, group: Group) -> nn.Linear:
    """The consumer of a group, for what re-solves linear layers only.

    Raises:
        ArchitectureError: it is another module.
    """
    consumer = model.get_submodule(group.consumer)
    if not isinstance(consumer, nn.Linear):
        raise ArchitectureError(
            f"The consumer {group.consumer} is a {type(consumer).__name__}; this recipe re-solves linear layers only.",
            hint="Use another recipe.",
        )
    return consumer


def normal_equations(
    model: nn.Module,
    group: Group,
    batches: Sequence[Batch],
    calls: int,
    known: Known,
    outputs: torch.Tensor | None = None,
) -> tuple[Normal, Normal, float]:
    """Stream the normal equations of one consumer.

    Returns:
        (training, held-out) equations, and the held-out mean of ||S||^2 that errors are stated relative to.
    """
    fitted: Normal | None = None
    judged: Normal | None = None
    size = 0.0
    for rows, judge in stream_rows(model, group, batches, calls, known, outputs):
        if rows.x is None:
            continue
        if fitted is None or judged is None:
            weights = rows.scale.double().square().amax(dim=(0, 1))
            fitted, judged = (
                Normal.zeros(rows.x.shape[-1], rows.y.shape[-1], rows.x.device, weights) for _ in range(2)
            )
        for chosen, normal in ((rows.taken & ~judge[:, None], fitted), (rows.taken & judge[:, None], judged)):
            normal.add(rows.x[chosen].double(), rows.y[chosen].double())
        size += float(rows.target[rows.taken & judge[:, None]].double().square().sum())
    if fitted is None or judged is None or not fitted.rows or not judged.rows:
        raise DataError(
            "Too few calibration samples to refit: one in four is held out and none was left.",
            hint="Pass more samples, or --no-refit.",
        )
    return fitted, judged, size / judged.rows


def unsolved(
    model: nn.Module,
    group: Group,
    batches: Sequence[Batch],
    calls: int,
    known: Known,
    outputs: torch.Tensor | None,
    reason: str,
) -> Refit:
    """The held-out error of a consumer that keeps its weights because it cannot be re-solved."""
    error = size = 0.0
    for rows, judge in stream_rows(model, group, batches, calls, known, outputs, inputs=False):
        taken = rows.taken & judge[:, None]
        error += float(((rows.found - rows.y) * rows.scale)[taken].double().square().sum())
        size += float(rows.target[taken].double().square().sum())
    share = error / size if size else 0.0
    return Refit(before=share, after=share, ridge=0.0, kept=False, reason=reason)


def refit_consumer(
    model: nn.Module,
    group: Group,
    batches: Sequence[Batch],
    calls: int,
    known: Known,
    ridge: float | None,
    outputs: torch.Tensor | None = None,
    *,
    add_bias: bool = False,
    norm: nn.BatchNorm2d | None = None,
) -> Refit:
    """Re-solve one consumer in place, unless that does not lower its held-out error.

    Args:
        ridge: mu relative to the mean diagonal of X^T X; None chooses among RIDGES by held-out error.
        outputs: columns of its original output that the consumer still has, None for all.
        known: what the original puts out there, and what earlier blocks of the cut model put out.
        add_bias: give it a bias if it has none.
        norm: the batch norm behind it, which then takes the bias in.
    """
    consumer = model.get_submodule(group.consumer)
    reason = why_not(consumer)
    if reason is not None or not isinstance(consumer, Consumer):
        return unsolved(model, group, batches, calls, known, outputs, reason or "")
    added = (add_bias or norm is not None) and consumer.bias is None
    if added:
        consumer.bias = nn.Parameter(consumer.weight.new_zeros(len(consumer.weight)), requires_grad=False)
    bias = consumer.bias is not None
    fitted, judged, size = normal_equations(model, group, batches, calls, known, outputs)
    start = weight_matrix(consumer)
    before = judged.error(start)
    trials = {mu: judged.error(solve_ridge(fitted, start, mu, bias=bias)) for mu in ([ridge] if ridge else RIDGES)}
    best = min(trials, key=lambda mu: trials[mu])
    kept = trials[best] < before
    if kept:
        set_weight_matrix(consumer, solve_ridge(fitted.plus(judged), start, best, bias=bias))
        if added and norm is not None:
            fold_bias(consumer, norm)
    elif added:
        consumer.bias = None
    return Refit(before=before / size, after=trials[best] / size, ridge=best, kept=kept)


def refit_model(
    original: nn.Module,
    model: nn.Module,
    structure: Structure,
    kept: Mapping[str, Sequence[int]],
    batches: Sequence[Batch],
    *,
    ridge: float | None = None,
    add_bias: bool = False,
    progress: Progress = SILENT,
) -> dict[str, Refit]:
    """Re-solve every consumer of a cut model in place, from the first cut group on.

    Args:
        structure: of the original; paths are the same in the cut model.
        kept: the kept units that `model` was cut by.
        add_bias: give consumers without bias one, which folds in the mean of what went; see `added_biases`.

    Returns:
        by group name, in execution order: held-out error before and after relative to the mean squared size of
        the residual stream, and whether the new weights were taken; and, where there are batch norms, the same of
        the outputs as their statistics were measured anew, by the name BATCH_NORM.
    """
    order = consumer_calls(original, structure, batches[0])
    norms = following_norms(original, structure, batches[0])
    report: dict[str, Refit] = {}
    changed = False
    with knowing(original, model, structure, batches, order) as known:
        for number, (group, calls) in enumerate(order.items()):
            changed = changed or len(kept.get(group.name, range(group.units))) < group.units
            changed = changed or merged_before(structure.tokens, kept, group.block_name)
            if changed:
                progress.update(number, len(order), group.name)
                known.advance(group)
                report[group.name] = refit_consumer(
                    model,
                    group,
                    batches,
                    calls,
                    known,
                    ridge,
                    None if group.residual else kept_outputs(structure, group, kept),
                    add_bias=add_bias,
                    norm=batch_norms(model).get(norms.get(group.consumer, "")),
                )
    if report and (measured := reestimate(original, model, structure, batches)) is not None:
        report[BATCH_NORM] = measured
    return report
