"""Recipes that score every unit, search a mask under the budget, and refit or not."""

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
from optin_cli.scoring.one_shot import score_checkpoint, would_give
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


def prepare_scored(
    setting: Setting,
    *,
    criterion: str = "trajectory",
    estimator: str = "obs",
    algorithm: Algorithm = "exact",
    refit: bool = True,
) -> Prepared:
    """Score by a criterion; each budget then searches and, with `refit`, re-solves the consumers."""
    options = replace(setting.options, criterion=criterion, estimator=estimator)
    what = setting.checkpoint, setting.calibration, options
    scores = setting.scores
    if scores is None or not would_give(scores, *what, seq_len=setting.seq_len):
        scores = score_checkpoint(*what, seq_len=setting.seq_len, progress=setting.progress)
    costs = Costs.of(scores.header)

    def decide(limits: Limits) -> Decision:
        kept = choose_units(scores.importance, costs, limits, algorithm=algorithm)
        return Decision(kept, refit_with(setting, kept, setting.calibration.batches) if refit else None)

    return Prepared(decide, scores)


SKETCH = functools.partial(prepare_scored, estimator="sketch")
ALONE = functools.partial(prepare_scored, refit=False)

SCORED: tuple[Recipe, ...] = (
    Recipe("optin", prepare_scored),
    Recipe("sketch", SKETCH),
    Recipe("no-refit", functools.partial(SKETCH, refit=False)),
    Recipe(
        "slimgpt",
        functools.partial(prepare_scored, criterion="slimgpt"),
    ),
    Recipe("magnitude", functools.partial(ALONE, criterion="magnitude")),
    Recipe("wanda", functools.partial(ALONE, criterion="wanda")),
    Recipe("fisher", functools.partial(ALONE, criterion="fisher"), needs_labels=True),
    Recipe("random", functools.partial(prepare_scored, criterion="random")),
)
