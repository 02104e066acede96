"""Score in rounds: important units are scored again in smaller, refitted models.

One-shot importance takes the rest of the network as intact. In a pruned and refitted model a unit's loss is the part
that the others can no longer make up for. So after the first scores the model is pruned by them to a share of its MACs
and refitted, and the remaining units are scored again; then again at a smaller share. Each unit ends with its score
from the last model that had it, so the result serves every budget, as one-shot scores do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from optin_cli.artifacts.base import Vector32
from optin_cli.artifacts.mask import Kept
from optin_cli.artifacts.scores import Scores
from optin_cli.checkpoints.checkpoint import Checkpoint
from optin_cli.errors import BudgetError
from optin_cli.model.cut import prune_copy
from optin_cli.model.structure import Structure
from optin_cli.model.units import Keeping
from optin_cli.options.scoring import CRITERIA, ScoreOptions
from optin_cli.progress import SILENT, Part, Progress
from optin_cli.refit.refit import refit_model
from optin_cli.refit.residual_stream import refittable
from optin_cli.scoring.accumulate import SavedState
from optin_cli.scoring.calibration import Calibration
from optin_cli.scoring.kinds import KIND_ESTIMATORS
from optin_cli.scoring.one_shot import check_exact_kinds, score_checkpoint
from optin_cli.searching.choose import choose_units
from optin_cli.searching.costs import Costs
from optin_cli.searching.limits import Limits


def shares_to_rescore(options: ScoreOptions, calibration: Calibration | None) -> tuple[float, ...]:
    """The shares of the MACs at which a run scores again: none for baselines, or with too few samples to refit."""
    if CRITERIA[options.criterion].terms is None or calibration is None or not refittable(calibration.batches):
        return ()
    return options.rescore


def state_files(state: Path, options: ScoreOptions) -> list[Path]:
    """Files that an interrupted run may have left: the states of its rounds and of kinds with their own estimator."""
    names = [*(str(number) for number in range(1, 1 + len(options.rescore))), *KIND_ESTIMATORS]
    return [state, *(part.path for part in map(SavedState(state).part, names) if part.path is not None)]


def score_in_rounds(
    checkpoint: Checkpoint,
    calibration: Calibration | None,
    options: ScoreOptions,
    *,
    seq_len: int | None,
    state: SavedState = SavedState(),  # noqa: B008 - frozen
    progress: Progress = SILENT,
) -> Scores:
    """Score every unit, then at each of `options.rescore` those that pruning to that share leaves.

    Args and errors: as of `score_checkpoint`, and UsageError: kinds were named to be scored exactly that the model
    lacks. A share that no mask can meet ends the rounds.
    """
    check_exact_kinds(checkpoint.structure, options)
    shares = shares_to_rescore(options, calibration)
    options = replace(options, rescore=shares)
    rounds = 1 + 2 * len(shares)
    done: list[float] = []

    def part(number: int) -> Progress:
        """Progress of one of `rounds` equal parts."""
        return Part(progress, number, rounds)

    first = score_checkpoint(checkpoint, calibration, options, seq_len=seq_len, state=state, progress=part(0))
    costs = Costs.of(first.header)
    importance = {name: values.copy() for name, values in first.importance.items()}
    errors = {name: values.copy() for name, values in first.standard_error.items()}
    kept: Kept = {group.name: list(range(group.units)) for group in checkpoint.structure.groups}
    for number, share in enumerate(shares, start=1):
        assert calibration is not None
        try:
            kept = choose_among(kept, importance, costs, share)
        except BudgetError:
            break
        pruned = prune_copy(checkpoint.model, checkpoint.structure, kept)
        refit_model(pruned, calibration.batches, progress=part(2 * number - 1))
        smaller = score_checkpoint(
            replace(checkpoint, model=pruned.model, structure=remaining(checkpoint.structure, kept)),
            calibration,
            options,
            seq_len=seq_len,
            state=state.part(str(number), kept),
            progress=part(2 * number),
        )
        for name, values in smaller.importance.items():
            importance[name][kept[name]] = values
            if name in smaller.standard_error:
                errors[name][kept[name]] = smaller.standard_error[name]
        done.append(share)
    header = first.header.model_copy(update={"options": replace(options, rescore=tuple(done)).recorded()})
    return Scores(header, importance, errors)


def choose_among(alive: Kept, importance: Mapping[str, Vector32], costs: Costs, share: float) -> Kept:
    """The units, of those alive, that lose least importance at a share of the MACs; BudgetError if none do."""
    counted = {}
    for name, values in importance.items():
        counted[name] = np.zeros_like(values)
        counted[name][alive[name]] = values[alive[name]]
    found = choose_units(counted, costs, Limits(keep_macs=share))
    return {name: sorted(set(units) & set(alive[name])) for name, units in found.items()}


def remaining(structure: Structure, kept: Keeping) -> Structure:
    """The structure of a model that was pruned to the kept units; groups without any are left out."""
    groups = (replace(group, units=len(kept[group.name])) for group in structure.groups)
    return structure.with_groups(group for group in groups if group.units)
