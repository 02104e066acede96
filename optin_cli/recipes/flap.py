"""FLAP: An et al. 2023, "Fluctuation-based adaptive structured pruning for large language models" (arXiv 2312.11983).

A column of a consumer's input that hardly varies can be replaced by its mean, which a bias puts out as well:

1. Fluctuation of every column j of a consumer with weight W, over the tokens of the calibration set:
   S_j = var(x_j) ||W_:j||^2.
2. Scores are standardised within each consumer, so that layers compare: (S - mean S) / std S; a unit's is the mean
   over its columns.
3. Units are kept by one threshold on these scores over the whole model, which meets the budget.
4. The bias of each consumer takes what the removed columns put out on average, sum_j mean(x_j) W_:j.

Here the threshold is the relaxation of a knapsack, in which a unit gains its score, counted from the model's least,
times its cost.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from optin_cli.artifacts.base import Vector32
from optin_cli.artifacts.manifest import Refit
from optin_cli.artifacts.mask import Kept
from optin_cli.data.batch import Batch
from optin_cli.model.forward import hooks
from optin_cli.model.linear import weight_by_outputs
from optin_cli.model.readout import run_hidden
from optin_cli.model.units import Group
from optin_cli.recipes.recipe import Decision, Prepared, Recipe, Setting
from optin_cli.refit.design_matrix import output_rows
from optin_cli.refit.refit import linear
from optin_cli.searching.choose import choose_units
from optin_cli.searching.costs import Costs
from optin_cli.searching.limits import Limits


@dataclass
class Columns:
    """Sums over tokens of a consumer's inputs, and of their squares (columns,) float64. tokens: how many."""

    total: torch.Tensor
    square: torch.Tensor
    tokens: int = 0

    @property
    def mean(self) -> torch.Tensor:
        """Of every column."""
        return self.total / max(self.tokens, 1)

    @property
    def variance(self) -> torch.Tensor:
        """Of every column, with Bessel's correction."""
        centred = (self.square - self.tokens * self.mean.square()).clamp(min=0.0)
        return centred / max(self.tokens - 1, 1)


@torch.no_grad()
def measure_columns(setting: Setting) -> dict[str, Columns]:
    """Sums over all calibration tokens, by path of the consumer."""
    model, groups = setting.checkpoint.model, setting.checkpoint.structure.groups
    found: dict[str, Columns] = {}
    for group in groups:
        columns = weight_by_outputs(linear(model, group)).shape[1]
        zeros = torch.zeros(columns, dtype=torch.float64, device=setting.checkpoint.device)
        found[group.consumer] = Columns(zeros, zeros.clone())

    def collect(_module: nn.Module, arguments: tuple[torch.Tensor, ...], path: str, batch: Batch) -> None:
        rows = output_rows(arguments[0], -1, batch.size)
        real = rows[batch.mask_for(rows)].double()
        found[path].total += real.sum(dim=0)
        found[path].square += real.square().sum(dim=0)
        found[path].tokens += len(real)

    for number, each in enumerate(setting.calibration.batches):
        setting.progress.update(number, len(setting.calibration.batches), "fluctuations")
        batch = each.to(setting.checkpoint.device)
        with hooks() as hook:
            for path in found:
                hook.before(model.get_submodule(path), functools.partial(collect, path=path, batch=batch))
            run_hidden(model, setting.checkpoint.structure, batch.inputs)
    return found


def standardised(values: torch.Tensor) -> torch.Tensor:
    """Values with mean 0 and standard deviation 1; zeros where all are the same: (n,)."""
    centred = values - values.mean()
    spread = float(centred.square().mean().sqrt())
    return centred / spread if spread > 0 else torch.zeros_like(values)


def fluctuation(model: nn.Module, group: Group, columns: Columns) -> torch.Tensor:
    """Standardised fluctuations of a group's units: (units,)."""
    weight = weight_by_outputs(linear(model, group)).detach().double()
    scores = standardised(columns.variance * weight.square().sum(dim=0))
    return scores.reshape(group.units, group.unit_width).mean(dim=1)


def gains(scores: Mapping[str, torch.Tensor], costs: Costs, *, macs: bool) -> dict[str, Vector32]:
    """Importances whose knapsack keeps by a threshold on the scores. macs: the budget is one of MACs."""
    least = min(float(values.min()) for values in scores.values() if len(values))
    found = {}
    for name, values in scores.items():
        group = costs.groups[name]
        cost = group.unit_macs if macs else group.unit_parameters
        found[name] = ((values.cpu().numpy() - least) * cost).astype(np.float32)
    return found


@torch.no_grad()
def compensate(setting: Setting, model: nn.Module, kept: Kept, columns: Mapping[str, Columns]) -> dict[str, Refit]:
    """Add to the biases of a pruned model, in place, what the removed columns put out on average."""
    for group in setting.checkpoint.structure.groups:
        gone = torch.ones(group.units, dtype=torch.bool)
        gone[kept[group.name]] = False
        if not bool(gone.any()):
            continue
        original, consumer = linear(setting.checkpoint.model, group), linear(model, group)
        mean = columns[group.consumer].mean * gone.repeat_interleave(group.unit_width).to(consumer.weight.device)
        lost = (weight_by_outputs(original).double() @ mean).to(consumer.weight.dtype)
        before = torch.zeros_like(lost) if consumer.bias is None else consumer.bias
        consumer.bias = nn.Parameter(before + lost, requires_grad=False)
    return {}


def prepare_flap(setting: Setting) -> Prepared:
    """Measure fluctuations; each budget then searches and compensates."""
    model, groups = setting.checkpoint.model, setting.checkpoint.structure.groups
    columns = measure_columns(setting)
    scores = {group.name: fluctuation(model, group, columns[group.consumer]) for group in groups}

    def decide(limits: Limits) -> Decision:
        importance = gains(scores, setting.slice_costs, macs=limits.keep_macs is not None)
        kept = choose_units(importance, setting.slice_costs, limits)
        return Decision(kept, lambda pruned: compensate(setting, pruned, kept, columns))

    return Prepared(decide)


FLAP = Recipe("flap", prepare_flap)
"""An et al.: columns that hardly vary go, and biases take their means."""
