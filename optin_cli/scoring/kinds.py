"""Kinds of units with an estimator of their own, which scores them after all others."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from optin_cli.artifacts.scores import Scores
from optin_cli.checkpoints.checkpoint import Checkpoint
from optin_cli.options.scoring import ScoreOptions
from optin_cli.progress import Progress
from optin_cli.scoring.accumulate import SavedState
from optin_cli.scoring.calibration import Calibration
from optin_cli.scoring.depth import check_blocks, score_blocks
from optin_cli.scoring.token_rate import exchange_tokens
from optin_cli.scoring.tokens import check_tokens, score_tokens


@dataclass(frozen=True)
class KindEstimator:
    """check: refuses a checkpoint or options before any data is read. add: the scores with the kind's groups."""

    check: Callable[[Checkpoint, ScoreOptions], None]
    add: Callable[[Scores, Checkpoint, Calibration, ScoreOptions, SavedState, Progress], Scores]


def add_tokens(
    scores: Scores,
    checkpoint: Checkpoint,
    calibration: Calibration,
    options: ScoreOptions,
    state: SavedState,
    progress: Progress,
) -> Scores:
    """Score tokens, and bring them onto the scale of other units."""
    scores = score_tokens(scores, checkpoint, calibration.exact_batches, options, state=state, progress=progress)
    return exchange_tokens(scores, checkpoint, calibration.batches, options, progress=progress)


def add_blocks(
    scores: Scores,
    checkpoint: Checkpoint,
    calibration: Calibration,
    options: ScoreOptions,
    _state: SavedState,
    progress: Progress,
) -> Scores:
    """Score whole blocks on the scale of other units; an interrupted run starts over with them."""
    return score_blocks(scores, checkpoint, calibration.exact_batches, calibration.batches, options, progress)


KIND_ESTIMATORS: Mapping[str, KindEstimator] = {
    "tokens": KindEstimator(check_tokens, add_tokens),
    "blocks": KindEstimator(check_blocks, add_blocks),
}
"""By name of the units, as in `options.scoring.UNITS`; a part of a run's state has that name too."""


def estimators_of(checkpoint: Checkpoint, options: ScoreOptions) -> dict[str, KindEstimator]:
    """Those of the units to score, once they accept the checkpoint and the options."""
    chosen = {name: estimator for name, estimator in KIND_ESTIMATORS.items() if name in options.units}
    for estimator in chosen.values():
        estimator.check(checkpoint, options)
    return chosen
