"""Ridge least-squares refit of the layers that read pruned units.

Walking these consumers in order of execution, each gets the weights and bias that make the residual stream after it
most like the original's, given its input from the part of the pruned model that is refitted already:

    W = argmin ||X W + b - Y||^2 + mu ||W - W0||^2,   Y = S - R

X: the consumer's input in the pruned model; S: the original's sum of consumer output and residual stream; R: the
pruned model's residual stream, so that errors of earlier layers are corrected too (error feedback). W0 is what the
consumer had or, of a convolution, the solution of the same problem in the original model, where Y is its own output:
nothing but the removed columns is missing there, so that few images tell it well, while errors of earlier layers are
like noise. Held-out samples choose W0 and mu. Only normal equations are kept, summed in float64, so memory does not
grow with the data.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from optin_cli.artifacts.manifest import Refit
from optin_cli.data.batch import Batch
from optin_cli.errors import ArchitectureError, DataError
from optin_cli.model.cut import PrunedModel
from optin_cli.model.forward import single
from optin_cli.model.linear import is_linear, weight_by_outputs
from optin_cli.model.modeling_optin import BiasAlone
from optin_cli.model.units import Group
from optin_cli.options.refit import RefitOptions
from optin_cli.progress import SILENT, Progress
from optin_cli.refit.batch_norm import batch_norms, fold_bias, following_norms, reestimate
from optin_cli.refit.design_matrix import is_consumer, set_weight_matrix, weight_matrix, why_not
from optin_cli.refit.products import refit_products
from optin_cli.refit.residual_stream import RefitRun, own_rows, refitting, stream_rows
from optin_cli.refit.ridge import Normal, solve_ridge

BATCH_NORM = "batch_norm"
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Values of mu, relative to the mean diagonal of X^T X, of which the one with least held-out error is taken."""


def linear(model: nn.Module, group: Group) -> nn.Linear | BiasAlone:
    """The consumer of a group, for what re-solves linear layers only (ArchitectureError if it is another module)."""
    consumer = model.get_submodule(group.consumer)
    if not is_linear(consumer):
        raise ArchitectureError(
            f"The consumer {group.consumer} is a {type(consumer).__name__}; this recipe re-solves linear layers only.",
            hint="Use another recipe.",
        )
    return consumer


def normal_equations(run: RefitRun, group: Group) -> tuple[Normal, Normal, float]:
    """The (training, held-out) equations of a consumer, and the held-out mean of ||S||^2, to which errors relate."""
    fitted: Normal | None = None
    judged: Normal | None = None
    size = 0.0
    for rows, judge in stream_rows(run, group):
        if rows.x is None:
            continue
        if fitted is None or judged is None:
            weights = rows.scale.double().square().amax(dim=(0, 1))
            fitted, judged = (
                Normal.zeros(rows.x.shape[-1], rows.y.shape[-1], rows.x.device, weights) for _ in range(2)
            )
        for chosen, normal in ((rows.taken & ~judge[:, None], fitted), (rows.taken & judge[:, None], judged)):
            normal.add(single(rows.x[chosen]), single(rows.y[chosen]))
        size += float(rows.target[rows.taken & judge[:, None]].double().square().sum())
    if fitted is None or judged is None or not fitted.rows or not judged.rows:
        raise DataError(
            "Too few calibration samples to refit: one in four is held out and none was left.",
            hint="Pass more samples, or --no-refit.",
        )
    return fitted, judged, size / judged.rows


@dataclass(frozen=True)
class Start:
    """Weights that ridge draws to: as the training samples give them, and as all do; both (k, d)."""

    fitted: torch.Tensor
    whole: torch.Tensor


def own_start(run: RefitRun, group: Group, start: torch.Tensor, weights: torch.Tensor | None, *, bias: bool) -> Start:
    """The weights by which a consumer's kept columns give its own output in the original model best.

    Args:
        start: weights that are kept. weights: of the squared error in each output (d,).
    """
    fitted, judged = (Normal.zeros(start.shape[0], start.shape[1], start.device, weights) for _ in range(2))
    for x, y, taken, judge in own_rows(run, group):
        for chosen, normal in ((taken & ~judge[:, None], fitted), (taken & judge[:, None], judged)):
            normal.add(single(x[chosen]), single(y[chosen]))
    best = min(RIDGES, key=lambda mu: judged.error(solve_ridge(fitted, start, mu, bias=bias)))
    return Start(*(solve_ridge(normal, start, best, bias=bias) for normal in (fitted, fitted.plus(judged))))


def unsolved(run: RefitRun, group: Group, reason: str) -> Refit:
    """The held-out error of a consumer that keeps its weights because it cannot be re-solved, and the reason."""
    error = size = 0.0
    for rows, judge in stream_rows(run, group, inputs=False):
        taken = rows.taken & judge[:, None]
        error += float(((rows.found - rows.y) * rows.scale)[taken].double().square().sum())
        size += float(rows.target[taken].double().square().sum())
    share = error / size if size else 0.0
    return Refit(before=share, after=share, ridge=0.0, kept=False, reason=reason)


def refit_consumer(run: RefitRun, group: Group, options: RefitOptions, norm: nn.BatchNorm2d | None = None) -> Refit:
    """Re-solve one consumer in place if that lowers its held-out error; `norm`, behind it, then takes the bias."""
    consumer = run.pruned.model.get_submodule(group.consumer)
    biased = options.add_bias or norm is not None
    reason = why_not(consumer, biased=biased)
    if reason is not None or not is_consumer(consumer):
        return unsolved(run, group, reason or "")
    added = biased and consumer.bias is None
    if added:
        outputs = len(weight_by_outputs(consumer))
        consumer.bias = nn.Parameter(consumer.weight.new_zeros(outputs), requires_grad=False)
    bias = consumer.bias is not None
    fitted, judged, size = normal_equations(run, group)
    start = weight_matrix(consumer)
    before = judged.error(start)
    ridges = RIDGES if options.ridge is None else (options.ridge,)
    starts = [Start(start, start)]
    fewer = len(run.pruned.kept.get(group.name, range(group.units))) < group.units
    if fewer and isinstance(consumer, nn.Conv2d):
        starts.append(own_start(run, group, start, fitted.weights, bias=bias))
    trials = {
        (number, mu): judged.error(solve_ridge(fitted, each.fitted, mu, bias=bias))
        for number, each in enumerate(starts)
        for mu in ridges
    }
    number, best = min(trials, key=lambda trial: trials[trial])
    after = trials[number, best]
    kept = after < before
    if kept:
        set_weight_matrix(consumer, solve_ridge(fitted.plus(judged), starts[number].whole, best, bias=bias))
        if added and norm is not None:
            fold_bias(consumer, norm)
    elif added:
        consumer.bias = None
    return Refit(before=before / size, after=after / size, ridge=best, kept=kept)


def refit_model(
    pruned: PrunedModel,
    batches: Sequence[Batch],
    options: RefitOptions = RefitOptions(),
    *,
    progress: Progress = SILENT,
) -> dict[str, Refit]:
    """Re-solve every consumer of a pruned model in place, from the first one that pruning changes on.

    Queries and keys that lost dimensions come first, for all blocks.

    Args:
        options: only the ridge, and whether consumers without a bias get one for the mean of their pruned inputs.

    Returns:
        What was done to each consumer, by group name in order of execution: its held-out error before and after,
        relative to the mean squared size of the residual stream, and whether the new weights were taken. BATCH_NORM
        names an entry for the model's outputs before and after the statistics of batch norms were measured again.
    """
    original, structure = pruned.original, pruned.structure
    norms = following_norms(original, structure, batches[0])
    report = refit_products(pruned, batches)
    changed = False
    with refitting(pruned, batches) as run:
        gone = set(structure.dropped(pruned.kept))
        for number, group in enumerate(run.calls):
            if group.block in gone:
                continue
            changed = changed or structure.changes(pruned.kept, group)
            if changed:
                progress.update(number, len(run.calls), group.name)
                run.advance(group)
                norm = batch_norms(pruned.model).get(norms.get(group.consumer, ""))
                report[group.name] = refit_consumer(run, group, options, norm)
    if report and (measured := reestimate(pruned, batches)) is not None:
        report[BATCH_NORM] = measured
    return report
