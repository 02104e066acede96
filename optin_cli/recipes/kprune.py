"""K-prune: Park et al. 2024, "Accurate retraining-free pruning for pretrained encoder-based language models".

(ICLR 2024, arXiv 2308.03449.) The sublayers (groups) are pruned from the bottom up; for each:

1. Knowledge measurement of every column c of the consumers' inputs, in this and the later sublayers of the model
   pruned so far: predictive, K_pred(c) = mean over samples of gamma^2 KL(p || p without c) to second order in the
   mask, an expected squared gradient by the mask (p softened by gamma); and representational, K_rep(c) = mean over
   tokens (images: samples) and outputs of (x_c w_c)^2, the change of the sublayer's output when c goes.
2. Knowledge-preserving mask search: S = K_pred + lambda K_rep, for heads mu times the mean over their columns;
   keep the units of highest S per FLOP, over all sublayers not pruned yet, as far as the remaining budget goes.
3. Prune this sublayer by that mask; knowledge-preserving weight tuning of its consumer:

       min_W ||X W - Q||_F^2,   Q = original's (sublayer output + its input) - pruned model's sublayer input

Simplifications: the gradients are taken of a random square root of the Hessian of KL (the sketch), because the
gradient of KL itself vanishes where nothing is pruned yet; the mask search is an exact knapsack, of which keeping by a
threshold on S per FLOP is the relaxation; least squares includes the bias, and a ridge of TINY_RIDGE against singular
inputs; lambda and mu are those of the authors' published command, where the paper searches a few values per task.
"""

import contextlib
import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from optin_cli.artifacts.base import Vector32
from optin_cli.artifacts.manifest import Refit
from optin_cli.artifacts.mask import Kept
from optin_cli.model.cut import cut, prune_copy
from optin_cli.model.replay import Prefixes
from optin_cli.model.units import Group
from optin_cli.recipes.recipe import Decision, Prepared, Recipe, Setting
from optin_cli.refit.design_matrix import nothing_left, set_weight_matrix, weight_matrix
from optin_cli.refit.refit import linear, normal_equations, unsolved
from optin_cli.refit.residual_stream import RefitRun, refitting
from optin_cli.refit.ridge import relative, solve_ridge
from optin_cli.scoring.baselines import consumer_columns, unit_energies
from optin_cli.scoring.sketch import Objective, sketch_batch
from optin_cli.searching.choose import choose_units
from optin_cli.searching.costs import Costs
from optin_cli.searching.limits import Limits

GAMMA = 2.0
"""Temperature of the softened predictions."""
LAMBDA = 0.00025 * 32**2
"""Weight of representational beside predictive knowledge: the authors' 0.00025, whose gradients are of means over
batches of 32 samples, restated for gradients of single samples."""
MU = 64.0
"""Weight of heads beside neurons."""
TINY_RIDGE = 1e-6
"""Relative to the mean diagonal of X^T X."""


def measure_knowledge(
    setting: Setting, model: nn.Module, groups: Sequence[Group], prefixes: Prefixes | None = None
) -> dict[str, Vector32]:
    """S of every unit of `groups`, none of which is pruned yet in `model`: (units,) by group name."""
    checkpoint = setting.checkpoint
    columns = [replace(group, units=group.width, unit_width=1) for group in groups]
    structure = checkpoint.structure.with_groups(columns)
    predicted = {group.name: torch.zeros(group.width, dtype=torch.float64) for group in groups}
    represented = {name: zeros.clone() for name, zeros in predicted.items()}
    objective = Objective(manifold=0.0, output=1.0, temperature=GAMMA)
    samples = tokens = 0
    for number, batch in enumerate(b.to(checkpoint.device) for b in setting.calibration.batches):
        skipping = contextlib.nullcontext() if prefixes is None else prefixes.skipping(number)
        with skipping, unit_energies(model, columns, batch) as energies:
            gradients = sketch_batch(model, structure, batch, objective, probes=1, seed=setting.options.seed)
        for name in predicted:
            predicted[name] += gradients[name].sum(dim=0)
            represented[name] += energies[name].sum(dim=0)
        samples += batch.size
        tokens += int(batch.token_mask.sum()) if "attention_mask" in batch.inputs else batch.size
    knowledge = {}
    for group in groups:
        outputs = consumer_columns(model, group).shape[-1]
        each = predicted[group.name] / samples + LAMBDA * represented[group.name] / (tokens * outputs)
        scale = MU if group.kind == "head" else 1.0
        knowledge[group.name] = (scale * each.reshape(group.units, group.unit_width).mean(dim=1)).float().numpy()
    return knowledge


def search_rest(importance: Mapping[str, Vector32], costs: Costs, limits: Limits, done: Kept) -> Kept:
    """Choose the units of the groups that are not `done`, under what the others leave of the budgets."""
    groups, totals = costs.groups, costs.totals
    rest = costs.only(groups.keys() - done.keys())

    def left(share: float | None, total: int, cost: Mapping[str, float]) -> float | None:
        """The share that, stated for a model in which the done groups cannot be pruned, leaves as much room."""
        if share is None or not done:
            return share
        gone = sum(cost[name] * (groups[name].units - len(units)) for name, units in done.items())
        return min(1.0, share + gone / total)

    return choose_units(
        importance,
        rest,
        replace(
            limits,
            keep_macs=left(limits.keep_macs, totals.macs, {n: g.unit_macs for n, g in groups.items()}),
            keep_parameters=left(
                limits.keep_parameters, totals.parameters, {n: float(g.unit_parameters) for n, g in groups.items()}
            ),
            protect=[pattern for pattern in limits.protect if not done or fnmatch.filter(rest.groups, pattern)],
        ),
    )


def tune_consumer(setting: Setting, run: RefitRun, group: Group) -> Refit:
    """Solve one consumer in place on all samples; report held-out errors of a solution on the others alone."""
    consumer = linear(run.pruned.model, group)
    if (reason := nothing_left(consumer)) is not None:
        return unsolved(run, group, reason)
    bias, ridge = consumer.bias is not None, setting.ridge or TINY_RIDGE
    fitted, judged, size = normal_equations(run, group)
    start = weight_matrix(consumer)
    set_weight_matrix(consumer, solve_ridge(fitted.plus(judged), start, ridge, bias=bias))
    after = judged.error(solve_ridge(fitted, start, ridge, bias=bias))
    before = relative(judged.error(start), size)
    return Refit(before=before, after=relative(after, size), ridge=ridge, kept=True)


def prune_upward(
    setting: Setting, first: Mapping[str, Vector32], limits: Limits
) -> tuple[Kept, dict[str, Refit], dict[str, torch.Tensor]]:
    """Search, prune and tune sublayer by sublayer. first: S of every unit while nothing is pruned.

    Returns:
        (kept units, results of tuning, the tuned consumers' weights and biases by full path)
    """
    structure = setting.checkpoint.structure
    done: Kept = {}
    report: dict[str, Refit] = {}
    tuned: dict[str, torch.Tensor] = {}
    changed, importance = False, first
    pruned = prune_copy(setting.checkpoint.model, structure, done)
    with refitting(pruned, setting.calibration.batches) as run:
        order = list(run.calls)
        for number, group in enumerate(order):
            setting.progress.update(number, len(order), group.name)
            run.advance(group)
            if changed:
                importance = measure_knowledge(setting, pruned.model, order[number:], run.prefixes)
            done[group.name] = search_rest(importance, setting.slice_costs, limits, done)[group.name]
            cut(pruned.model, structure, {group.name: done[group.name]})
            changed = changed or len(done[group.name]) < group.units
            if changed:
                report[group.name] = tune_consumer(setting, run, group)
                state = pruned.model.get_submodule(group.consumer).state_dict()
                tuned |= {f"{group.consumer}.{name}": tensor.clone() for name, tensor in state.items()}
    return {name: done[name] for name in setting.slice_costs.groups}, report, tuned


def prepare_kprune(setting: Setting) -> Prepared:
    """Measure the knowledge of the whole model; each budget then prunes from the bottom up."""
    first = measure_knowledge(setting, setting.checkpoint.model, setting.checkpoint.structure.groups)

    def decide(limits: Limits) -> Decision:
        kept, report, tuned = prune_upward(setting, first, limits)

        def adjust(model: nn.Module) -> dict[str, Refit]:
            model.load_state_dict(tuned, strict=False)
            return report

        return Decision(kept, adjust)

    return Prepared(decide)


KPRUNE = Recipe("kprune", prepare_kprune)
