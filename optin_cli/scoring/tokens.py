"""A checkpoint and calibration batches in; what it costs that a share of the tokens merges behind each block, out.

    F_z(n) = mean over samples of the trajectory distance between the model and itself with n tokens merged behind
    block z alone

each original token having, in both trajectories compared, the mean of those that it merged with. That tokens merge is
thus not charged for, which is what they are meant to do, but that what they then become differs from the mean of what
they would have become alone: refit aims at the same mean. F_z is measured at a few n of the whole sequence's N; unit j
of block z's group is worth F_z(j + 1) - F_z(j). Where fewer than N tokens reach a block, to merge a share n / N of them
is taken to cost F_z(n): so the sum over a schedule foretells, within a third up or down on the ViT-S measured, what
all its merges lose together, while the sum of F_z at the bare numbers falls short of it by up to half.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from optin_cli.artifacts.scores import GroupScores, Scores
from optin_cli.checkpoints.checkpoint import Checkpoint
from optin_cli.checkpoints.token_checks import require_tokens
from optin_cli.data.batch import Batch
from optin_cli.errors import UsageError
from optin_cli.model.forward import observe
from optin_cli.model.masking import masked
from optin_cli.model.replay import captured, replayed
from optin_cli.model.structure import Structure
from optin_cli.model.token_costs import measure_token_costs
from optin_cli.model.tokens import KIND, Tokens, cluster_means, watching
from optin_cli.options.scoring import CRITERIA, ScoreOptions
from optin_cli.progress import SILENT, Progress
from optin_cli.scoring.accumulate import Accumulator
from optin_cli.scoring.exact import trajectory_distance
from optin_cli.scoring.sketch import Objective
from optin_cli.search.token_costs import token_saving

SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)
"""Of the tokens that can merge: how many do where it is measured. Closest where schedules mostly are."""


ESTIMATOR = "exact"


def ladder(units: int) -> list[int]:
    """How many tokens merge where it is measured, ascending, ending in all that can."""
    return sorted({max(1, round(share * (units - 1))) for share in SHARES})


@torch.no_grad()
def merge_batch(
    model: torch.nn.Module, structure: Structure, tokens: Tokens, group: str, batch: Batch, objective: Objective
) -> dict[str, torch.Tensor]:
    """What a token costs between one measured number of merges and the next: (samples, numbers) by group name."""
    with captured(model, structure) as calls:
        reference = observe(model, structure, batch)
    path = dict(tokens.blocks)[tokens.groups[group]]
    first = [where for where, _ in calls].index(path)
    known = [output for _, output in calls[: first + 1]]
    steps = ladder(tokens.units)
    lost = [torch.zeros(batch.size, dtype=torch.float64)]
    for number in steps:
        kept = {group: range(number, tokens.units)}
        with (
            replayed(model, structure, known),
            masked(model, structure, kept),
            watching(model, tokens) as places,
        ):
            mine = observe(model, structure, batch)
        theirs = replace(reference, features=[cluster_means(f, places[0]) for f in reference.features])
        lost.append(trajectory_distance(mine, theirs, structure, batch, objective, first).double().cpu())
    widths = torch.tensor([high - low for low, high in zip([0, *steps], steps, strict=False)], dtype=torch.float64)
    return {group: torch.stack(lost, dim=1).diff(dim=1) / widths}


def per_unit(slopes: NDArray[np.float64], units: int) -> NDArray[np.float32]:
    """A number a unit, from the mean cost of a token between one measured number of merges and the next.

    Between those F follows a power of the number, as it does over all of them, nearly. The later a unit goes, the more
    it costs: where noise says less, units are pooled, which keeps their sum. The last can never go.
    """
    steps = np.array(ladder(units), dtype=np.float64)
    lost = np.cumsum(np.maximum(slopes, 0.0) * np.diff([0.0, *steps]))
    number = np.arange(1.0, units)
    found = np.interp(number, [0.0, *steps], [0.0, *lost])
    if lost[0] > 0 and len(steps) > 1:
        found = np.exp(np.interp(np.log(number), np.log(steps), np.log(lost)))
        power = max(np.log(lost[1] / lost[0]) / np.log(steps[1] / steps[0]), 1.0)
        found = np.where(number < steps[0], lost[0] * (number / steps[0]) ** power, found)
    pools: list[list[float]] = []
    for value in np.diff([0.0, *found]):
        pools.append([float(value), 1])
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (one, wide), (two, more) = pools[-2], pools.pop()
            pools[-1] = [(one * wide + two * more) / (wide + more), wide + more]
    each = np.repeat([value for value, _ in pools], [int(width) for _, width in pools])
    return np.append(each, each[-1]).astype(np.float32)


def check_units(checkpoint: Checkpoint, options: ScoreOptions) -> Tokens | None:
    """The tokens to score, None where they are not asked for.

    Raises:
        ArchitectureError: they cannot be reduced. UsageError: the criterion cannot judge them.
    """
    if "tokens" not in options.units:
        return None
    if CRITERIA[options.criterion].terms is None:
        raise UsageError(
            f"The criterion {options.criterion} judges weights, but tokens have none.",
            hint="Score tokens with --criterion trajectory, manifold or output.",
        )
    return require_tokens(checkpoint)


def token_state(state: Path) -> Path:
    """Where an interrupted run leaves the tokens' part, beside the state of all other groups."""
    return state.with_name(f"{state.name}.tokens")


def score_tokens(
    scores: Scores,
    checkpoint: Checkpoint,
    batches: Sequence[Batch],
    options: ScoreOptions,
    *,
    state: Path | None = None,
    resume: bool = False,
    progress: Progress = SILENT,
) -> Scores:
    """The scores with a group of tokens for every block but the last.

    Args:
        scores: of all other groups.
        batches: on which the exact estimator runs.
        state, resume, progress: as of `score_checkpoint`.

    Raises:
        ArchitectureError: the tokens cannot be reduced.
    """
    tokens = require_tokens(checkpoint)
    objective = Objective.of(options)
    identity = repr((KIND, scores.header.options, sorted(scores.header.inputs.items())))
    fingerprint = hashlib.sha256(identity.encode()).hexdigest()
    totals = Accumulator()
    if resume and state is not None and state.exists():
        totals = Accumulator.load(state, fingerprint)
    jobs = [
        functools.partial(merge_batch, checkpoint.model, checkpoint.structure, tokens, group, batch, objective)
        for group in tokens.groups
        for batch in (batch.to(checkpoint.device) for batch in batches)
    ]
    for number, job in enumerate(jobs[totals.done :], start=totals.done):
        progress.update(number, len(jobs), f"exact {job.args[3]}")
        totals.add(job())
        if state is not None:
            totals.save(state, fingerprint)
    inputs = checkpoint.input.example(scores.header.workload)
    costs = measure_token_costs(checkpoint.model, checkpoint.structure, tokens, inputs)
    importance: dict[str, NDArray[np.float32]] = dict(scores.importance)
    errors: dict[str, NDArray[np.float32]] = dict(scores.standard_error)
    groups = dict(scores.header.groups)
    widths = np.diff([0, *ladder(tokens.units)])
    for name, block in tokens.groups.items():
        importance[name] = per_unit(totals.mean(name).numpy(), tokens.units)
        each = np.repeat(totals.standard_error(name).float().numpy(), widths)
        errors[name] = np.append(each, each[-1])
        groups[name] = GroupScores(
            kind=KIND,
            block=block,
            units=tokens.units,
            unit_macs=token_saving(costs, block),
            unit_parameters=0,
            estimator=ESTIMATOR,
            samples=totals.counts[name],
        )
    header = scores.header.model_copy(update={"groups": groups, "tokens": costs})
    return Scores(header, importance, errors)
