"""Recipes that score every unit, search a mask under the budget, and refit or not; without refit they score once."""

import functools
from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from optin_cli.artifacts.manifest import Refit
from optin_cli.artifacts.mask import Kept
from optin_cli.data.batch import Batch
from optin_cli.model.cut import PrunedModel
from optin_cli.options.refit import RefitOptions
from optin_cli.options.search import Algorithm
from optin_cli.recipes.recipe import Adjust, Decision, Prepared, Recipe, Setting
from optin_cli.refit.refit import refit_model
from optin_cli.scoring.iterative import score_in_rounds
from optin_cli.searching.choose import choose_units
from optin_cli.searching.costs import Costs
from optin_cli.searching.limits import Limits


def refit_with(setting: Setting, kept: Kept, batches: Sequence[Batch]) -> Adjust:
    """Least-squares refit of every consumer on the calibration batches."""

    def adjust(model: nn.Module) -> dict[str, Refit]:
        checkpoint = setting.checkpoint
        pruned = PrunedModel(checkpoint.model, model, checkpoint.structure, kept)
        return refit_model(pruned, batches, RefitOptions(ridge=setting.ridge), progress=setting.progress)

    return adjust


def prepare_scored(setting: Setting, *, criterion: str, algorithm: Algorithm, refit: bool, rounds: bool) -> Prepared:
    """Score by a criterion; each budget then searches and, with `refit`, re-solves the consumers."""
    options = replace(setting.options, criterion=criterion)
    if not rounds:
        options = replace(options, rescore=())
    scores = score_in_rounds(
        setting.checkpoint, setting.calibration, options, seq_len=setting.seq_len, progress=setting.progress
    )
    costs = Costs.of(scores.header)

    def decide(limits: Limits) -> Decision:
        kept = choose_units(scores.importance, costs, limits, algorithm=algorithm)
        return Decision(kept, refit_with(setting, kept, setting.calibration.batches) if refit else None)

    return decide


def _scored(
    name: str, source: str, criterion: str, *, refit: bool, labels: bool = False, rounds: bool | None = None
) -> Recipe:
    prepare = functools.partial(
        prepare_scored, criterion=criterion, algorithm="exact", refit=refit, rounds=refit if rounds is None else rounds
    )
    return Recipe(name, source, prepare, needs_labels=labels)


SCORED: tuple[Recipe, ...] = (
    _scored("optin", "this project: scored in rounds, exact search, refit", "trajectory", refit=True),
    _scored("one-shot", "this project, scored once, with refit", "trajectory", refit=True, rounds=False),
    _scored("no-refit", "this project, scored once, without refit", "trajectory", refit=False),
    _scored("magnitude", "squared weights, no refit", "magnitude", refit=False),
    _scored("wanda", "Wanda (arXiv 2306.11695) summed over units, no refit", "wanda", refit=False),
    _scored("fisher", "diagonal Fisher, no refit", "fisher", refit=False, labels=True),
    _scored("random", "random units, with refit", "random", refit=True),
)
