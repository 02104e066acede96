"""A checkpoint and calibration samples in; scores out, of which those worth keeping were taken in smaller models.

One-shot importance takes the rest of the network as intact. In a cut and refitted model a unit's loss is what the
others can no longer make up for. So after the first scores the model is cut to a share of its MACs by them,
refitted, and the units it still has are scored anew; then again at a smaller share. Each unit ends with the score
that it had when it was last there, so the result serves every budget, as one-shot scores do.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from optin_cli.artifacts.base import Totals
from optin_cli.artifacts.costs import GroupCost
from optin_cli.artifacts.mask import Kept
from optin_cli.artifacts.scores import Scores, Vector
from optin_cli.checkpoints.checkpoint import Checkpoint
from optin_cli.data.batch import Batch
from optin_cli.errors import BudgetError
from optin_cli.model.cut import cut
from optin_cli.model.structure import Structure
from optin_cli.options.refit import MIN_REFIT_SAMPLES
from optin_cli.options.scoring import CRITERIA, ScoreOptions
from optin_cli.progress import SILENT, Part, Progress
from optin_cli.refit.refit import refit_model
from optin_cli.refit.residual_stream import held_out
from optin_cli.scoring.calibration import Calibration
from optin_cli.scoring.one_shot import check_exact_kinds, score_checkpoint
from optin_cli.search.choose import choose_units
from optin_cli.search.limits import Limits


def shares_to_rescore(options: ScoreOptions, calibration: Calibration | None) -> tuple[float, ...]:
    """The shares of the MACs at which a run scores anew: none for baselines, or with too few samples to refit."""
    if CRITERIA[options.criterion].terms is None or calibration is None or not refittable(calibration.batches):
        return ()
    return options.rescore


def refittable(batches: Sequence[Batch]) -> bool:
    """Whether there are samples enough to refit on, and both held out and not."""
    judged = sum(int(held_out(batch).sum()) for batch in batches)
    samples = sum(batch.size for batch in batches)
    return samples >= MIN_REFIT_SAMPLES and 0 < judged < samples


def state_files(state: Path, options: ScoreOptions) -> list[Path]:
    """What an interrupted run may have left: the state of each of its rounds."""
    return [_state_of(state, number) for number in range(1 + len(options.rescore))]


def score_in_rounds(
    checkpoint: Checkpoint,
    calibration: Calibration | None,
    options: ScoreOptions,
    *,
    seq_len: int | None,
    state: Path | None = None,
    resume: bool = False,
    progress: Progress = SILENT,
) -> Scores:
    """Score every unit, then at each of `options.rescore` those that a cut to that share leaves.

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

    first = score_checkpoint(
        checkpoint, calibration, options, seq_len=seq_len, state=state, resume=resume, progress=part(0)
    )
    importance = {name: values.copy() for name, values in first.importance.items()}
    errors = {name: values.copy() for name, values in first.standard_error.items()}
    kept: Kept = {group.name: list(range(group.units)) for group in checkpoint.structure.groups}
    for number, share in enumerate(shares, start=1):
        assert calibration is not None
        try:
            kept = choose_among(kept, importance, first.header.groups, first.header.totals, share)
        except BudgetError:
            break
        model = copy.deepcopy(checkpoint.model)
        cut(model, checkpoint.structure, kept, checkpoint.root)
        refit_model(
            checkpoint.model,
            model,
            checkpoint.structure,
            kept,
            calibration.batches,
            progress=part(2 * number - 1),
        )
        smaller = score_checkpoint(
            replace(checkpoint, model=model, structure=remaining(checkpoint.structure, kept)),
            calibration,
            options,
            seq_len=seq_len,
            state=None if state is None else _state_of(state, number),
            resume=resume,
            progress=part(2 * number),
            kept=kept,
        )
        for name, values in smaller.importance.items():
            importance[name][kept[name]] = values
            if name in smaller.standard_error:
                errors[name][kept[name]] = smaller.standard_error[name]
        done.append(share)
    header = first.header.model_copy(update={"options": replace(options, rescore=tuple(done)).recorded()})
    return Scores(header, importance, errors)


def choose_among(
    alive: Kept, importance: Mapping[str, Vector], groups: Mapping[str, GroupCost], totals: Totals, share: float
) -> Kept:
    """The units, of those alive, that lose least importance at a share of the MACs; BudgetError if none do."""
    counted = {}
    for name, values in importance.items():
        counted[name] = np.zeros_like(values)
        counted[name][alive[name]] = values[alive[name]]
    widths = {name: group.unit_width for name, group in groups.items()}
    found = choose_units(counted, groups, totals, Limits(keep_macs=share), blocks=widths)
    return {name: sorted(set(units) & set(alive[name])) for name, units in found.items()}


def remaining(structure: Structure, kept: Mapping[str, Sequence[int]]) -> Structure:
    """The structure of a model that was cut to the kept units; groups without any are left out."""
    groups = (replace(group, units=len(kept[group.name])) for group in structure.groups)
    return replace(structure, groups=tuple(group for group in groups if group.units))


def _state_of(state: Path, number: int) -> Path:
    return state if number == 0 else state.with_name(f"{state.name}.{number}")
