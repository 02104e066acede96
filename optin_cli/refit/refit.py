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
from optin_cli.processes.processes import ALONE, Processes
from optin_cli.progress import SILENT, Progress
from optin_cli.refit.batch_norm import batch_norms, fold_bias, following_norms, reestimate
from optin_cli.refit.design_matrix import is_consumer, set_weight_matrix, weight_matrix, why_not
from optin_cli.refit.products import refit_products
from optin_cli.refit.residual_stream import RefitRun, own_rows, refitting, stream_rows
from optin_cli.refit.ridge import Normal, relative, solve_ridge
from optin_cli.refit.waypoint import Waypoint

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
    """The (training, held-out) equations of a consumer, and the held-out mean of ||S||^2, to which errors relate.

    None of them has a row where what follows multiplies the whole output by zero.
    """
    consumer = run.pruned.model.get_submodule(group.consumer)
    assert is_consumer(consumer)
    start, first = weight_matrix(consumer), list[torch.Tensor]()

    def measure(portion: range) -> list[torch.Tensor]:
        fitted, judged, size = *empty_equations(start), 0.0
        for rows, judge in stream_rows(run, group, portion):
            assert rows.x is not None
            if not first:
                first.append(rows.scale.double().square().amax(dim=(0, 1)))
            for chosen, normal in ((rows.taken & ~judge[:, None], fitted), (rows.taken & judge[:, None], judged)):
                normal.add(single(rows.x[chosen]), single(rows.y[chosen]))
            size += float(rows.target[rows.taken & judge[:, None]].double().square().sum())
        return [*fitted.sums(), *judged.sums(), torch.tensor(size, dtype=torch.float64)]

    *sums, size = run.summed(measure)
    (weights,) = run.processes.copied(first, owner=0)  # as the first batch shows them
    fitted, judged = Normal.of(sums[:4], weights), Normal.of(sums[4:], weights)
    if bool(fitted.rows) != bool(judged.rows):
        raise DataError(
            "Too few calibration samples to refit: one in four is held out and none was left.",
            hint="Pass more samples, or --no-refit.",
        )
    return fitted, judged, relative(float(size), judged.rows)


def empty_equations(start: torch.Tensor) -> tuple[Normal, Normal]:
    """Two without rows, for weights like `start` (k, d)."""
    columns, outputs = start.shape
    return Normal.zeros(columns, outputs, start.device), Normal.zeros(columns, outputs, start.device)


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

    def measure(portion: range) -> list[torch.Tensor]:
        fitted, judged = empty_equations(start)
        for x, y, taken, judge in own_rows(run, group, portion):
            for chosen, normal in ((taken & ~judge[:, None], fitted), (taken & judge[:, None], judged)):
                normal.add(single(x[chosen]), single(y[chosen]))
        return [*fitted.sums(), *judged.sums()]

    sums = run.summed(measure)
    fitted, judged = Normal.of(sums[:4], weights), Normal.of(sums[4:], weights)
    errors = run.processes.map(lambda mu: judged.error(solve_ridge(fitted, start, mu, bias=bias)), RIDGES)
    best = RIDGES[errors.index(min(errors))]
    return Start(*(solve_ridge(normal, start, best, bias=bias) for normal in (fitted, fitted.plus(judged))))


def unsolved(run: RefitRun, group: Group, reason: str) -> Refit:
    """The held-out error of a consumer that keeps its weights because it cannot be re-solved, and the reason."""

    def measure(portion: range) -> list[torch.Tensor]:
        sums = torch.zeros(2, dtype=torch.float64)
        for rows, judge in stream_rows(run, group, portion, inputs=False):
            taken = rows.taken & judge[:, None]
            sums[0] += float(((rows.found - rows.y) * rows.scale)[taken].double().square().sum())
            sums[1] += float(rows.target[taken].double().square().sum())
        return [sums]

    error, size = run.summed(measure)[0].tolist()
    share = relative(error, size)
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
    if not judged.rows:
        if added:
            consumer.bias = None
        return Refit(before=0.0, after=0.0, ridge=0.0, kept=False, reason="its output is multiplied by zero")
    start = weight_matrix(consumer)
    before = judged.error(start)
    ridges = RIDGES if options.ridge is None else (options.ridge,)
    starts = [Start(start, start)]
    fewer = len(run.pruned.kept.get(group.name, range(group.units))) < group.units
    if fewer and isinstance(consumer, nn.Conv2d):
        starts.append(own_start(run, group, start, fitted.weights, bias=bias))
    trials = [(number, mu) for number in range(len(starts)) for mu in ridges]

    def trial(tried: tuple[int, float]) -> float:
        return judged.error(solve_ridge(fitted, starts[tried[0]].fitted, tried[1], bias=bias))

    errors = run.processes.map(trial, trials)
    after = min(errors)
    number, best = trials[errors.index(after)]
    kept = after < before
    if kept:
        set_weight_matrix(consumer, solve_ridge(fitted.plus(judged), starts[number].whole, best, bias=bias))
        if added and norm is not None:
            fold_bias(consumer, norm)
    elif added:
        consumer.bias = None
    return Refit(before=relative(before, size), after=relative(after, size), ridge=best, kept=kept)


def refit_model(
    pruned: PrunedModel,
    batches: Sequence[Batch],
    options: RefitOptions = RefitOptions(),
    *,
    processes: Processes = ALONE,
    waypoint: Waypoint | None = None,
    progress: Progress = SILENT,
) -> dict[str, Refit]:
    """Re-solve every consumer of a pruned model in place, from the first one that pruning changes on.

    Queries and keys that lost dimensions come first, for all blocks.

    Args:
        options: only the ridge, and whether consumers without a bias get one for the mean of their pruned inputs.
        processes: that share the batches, each with models of its own, which all end alike; statistics of batch norms
            are measured by each.
        waypoint: of a streamed model, where to go on.

    Returns:
        What was done to each consumer, by group name in order of execution: its held-out error before and after,
        relative to the mean squared size of the residual stream, and whether the new weights were taken. BATCH_NORM
        names an entry for the model's outputs before and after the statistics of batch norms were measured again.
    """
    original, structure = pruned.original, pruned.structure
    norms = following_norms(original, structure, batches[0])
    report = refit_products(pruned, batches, processes) | dict({} if waypoint is None else waypoint.report)
    dropped = set(structure.dropped(pruned.kept))
    passed = dropped | set(() if waypoint is None else waypoint.passed(structure))
    changed, block = False, None
    with refitting(pruned, batches, processes=processes, waypoint=waypoint, progress=progress) as run:
        for number, group in enumerate(run.calls):
            changed = changed or (group.block not in dropped and structure.changes(pruned.kept, group))
            if changed and group.block not in passed:
                progress.update(number, len(run.calls), group.name)
                run.advance(group)
                if waypoint is not None and group.block != block:
                    waypoint.reached(group.block, report)
                block = group.block
                norm = batch_norms(pruned.model).get(norms.get(group.consumer, ""))
                report[group.name] = refit_consumer(run, group, options, norm)
    if report and (measured := reestimate(pruned, batches)) is not None:
        report[BATCH_NORM] = measured
    return report
