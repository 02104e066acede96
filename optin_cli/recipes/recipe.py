"""A checkpoint, calibration data and a budget in; a mask, and how to adjust the cut weights, out.

A recipe is a published (or our own) way from a checkpoint to a smaller one, through the same groups, masks and
surgery, so that recipes differ in their method alone. Each is one module; the registry below names them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from optin_cli.artifacts.manifest import Refit
from optin_cli.artifacts.mask import Kept
from optin_cli.checkpoints.checkpoint import Checkpoint
from optin_cli.options.scoring import ScoreOptions
from optin_cli.progress import SILENT, Progress
from optin_cli.scoring.calibration import Calibration
from optin_cli.search.limits import Limits

Adjust = Callable[[nn.Module], dict[str, Refit]]
"""Changes the weights of a freshly cut model in place; tells by group name what it did to each consumer."""


@dataclass(frozen=True)
class Outcome:
    """What a recipe decided for one budget."""

    kept: Kept
    adjust: Adjust | None = None


@dataclass(frozen=True)
class Setting:
    """What every recipe is given: calibration batches and the constants that it may use.

    ridge: for those that refit; None chooses it by held-out error.
    """

    checkpoint: Checkpoint
    calibration: Calibration
    options: ScoreOptions
    seq_len: int | None
    ridge: float | None = None
    progress: Progress = SILENT


Prepared = Callable[[Limits], Outcome]
"""Decides for one budget; what is the same for all budgets (scores) was done when it was made."""


@dataclass(frozen=True)
class Recipe:
    """A named method: `prepare` does what all budgets share and returns what decides for each."""

    name: str
    source: str
    prepare: Callable[[Setting], Prepared]
    needs_labels: bool = False
