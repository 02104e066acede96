"""Recipes: ways to choose a mask for a budget and to adjust the pruned model's weights.

A recipe is a published method (or our own) of making a checkpoint smaller. All work through the same groups, masks and
pruning, so that they differ in their method alone. Each is one module; `registry.py` names them.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from optin_cli.artifacts.manifest import Refit
from optin_cli.artifacts.mask import Kept
from optin_cli.artifacts.scores import Scores
from optin_cli.checkpoints.checkpoint import Checkpoint
from optin_cli.options.scoring import ScoreOptions
from optin_cli.progress import SILENT, Progress
from optin_cli.scoring.calibration import Calibration
from optin_cli.searching.costs import Costs
from optin_cli.searching.limits import Limits

Adjust = Callable[[nn.Module], dict[str, Refit]]
"""Changes the weights of a freshly pruned model in place; returns what it did to each consumer, by group name."""


@dataclass(frozen=True)
class Decision:
    """A recipe's mask for one budget, and how to adjust the weights that it leaves."""

    kept: Kept
    adjust: Adjust | None = None


@dataclass(frozen=True)
class Setting:
    """Input of every recipe: calibration, costs of units and constants.

    ridge: of refits, None to choose it. scores: what an earlier run found, of which a recipe takes those that it would
    find itself.
    """

    checkpoint: Checkpoint
    calibration: Calibration
    costs: Costs
    options: ScoreOptions
    seq_len: int | None
    ridge: float | None = None
    progress: Progress = SILENT
    scores: Scores | None = None

    @property
    def slice_costs(self) -> Costs:
        """Costs of the units that are slices of weights, for recipes that decide on those alone."""
        return self.costs.only({group.name for group in self.checkpoint.structure.groups})


@dataclass(frozen=True)
class Prepared:
    """Decides for one budget; work that all budgets share was done when it was made.

    scores: of the units, for recipes whose decisions follow from them alone.
    """

    decide: Callable[[Limits], Decision]
    scores: Scores | None = None

    def __call__(self, limits: Limits) -> Decision:
        """Decide for one budget."""
        return self.decide(limits)


@dataclass(frozen=True)
class Recipe:
    """A named method (`options.sweep.RECIPES` says what it is): `prepare` does the work that all budgets share."""

    name: str
    prepare: Callable[[Setting], Prepared]
    needs_labels: bool = False
