"""Score tokens: the cost of merging a share of them behind each block.

    F_z(n) = mean over samples of the trajectory distance between the model and itself with n tokens merged behind
    block z alone

Both trajectories are compared by cluster means (each original token has the mean of those that it merged with), so
merging itself costs nothing; only the change that it causes later does. Refit aims at the same mean. F_z is measured at
a few n of the whole sequence's N; unit j of block z's group is worth F_z(j + 1) - F_z(j). Where fewer than N tokens
reach a block, merging a share n / N of them is taken to cost F_z(n): so the sum over a schedule predicts, within a
third up or down on the ViT-S measured, the loss of all its merges together, while the sum of F_z at the bare numbers
falls short of it by up to half.
"""

import functools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from optin_cli.artifacts.base import Vector32, Vector64
from optin_cli.artifacts.costs import TOKEN
from optin_cli.artifacts.scores import GroupScores, Scores
from optin_cli.checkpoints.checkpoint import Checkpoint
from optin_cli.checkpoints.checks import require_tokens
from optin_cli.data.batch import Batch
from optin_cli.errors import UsageError
from optin_cli.model.forward import observe
from optin_cli.model.masking import masked
from optin_cli.model.replay import captured, replayed
from optin_cli.model.structure import Structure
from optin_cli.model.token_costs import measure_token_costs
from optin_cli.model.tokens import Tokens, cluster_means
from optin_cli.options.scoring import CRITERIA, ScoreOptions
from optin_cli.progress import SILENT, Progress
from optin_cli.scoring.accumulate import Job, RunIdentity, SavedState, run_jobs
from optin_cli.scoring.exact import trajectory_distance
from optin_cli.scoring.sketch import Objective
from optin_cli.searching.token_costs import token_saving

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
    """Mean cost of a token between one measured number of merges and the next: (samples, numbers) by group name."""
    with captured(model, structure) as calls:
        reference = observe(model, structure, batch)
    path = dict(tokens.blocks)[tokens.block_of[group]]
    first = [where for where, _ in calls].index(path)
    known = [output for _, output in calls[: first + 1]]
    steps = ladder(tokens.mergeable)
    lost = [torch.zeros(batch.size, dtype=torch.float64)]
    for number in steps:
        kept = {group: range(number, tokens.mergeable)}
        with replayed(model, structure, known), masked(model, structure, kept), tokens.choices(model) as places:
            mine = observe(model, structure, batch)
        theirs = replace(reference, features=[cluster_means(f, places[0]) for f in reference.features])
        lost.append(trajectory_distance(mine, theirs, structure, batch, objective, first).double().cpu())
    widths = torch.tensor([high - low for low, high in zip([0, *steps], steps, strict=False)], dtype=torch.float64)
    return {group: torch.stack(lost, dim=1).diff(dim=1) / widths}


def per_unit(slopes: Vector64, units: int) -> Vector32:
    """Importance of each unit, from the mean cost of a token between one measured number of merges and the next.

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
    from scipy.optimize import isotonic_regression

    each = isotonic_regression(np.diff([0.0, *found])).x
    return np.append(each, each[-1]).astype(np.float32)


def check_tokens(checkpoint: Checkpoint, options: ScoreOptions) -> None:
    """Refuse to score tokens that cannot merge (ArchitectureError), or by a criterion that is none of theirs."""
    if CRITERIA[options.criterion].terms is None:
        raise UsageError(
            f"The criterion {options.criterion} judges weights, but tokens have none.",
            hint="Score tokens with --criterion trajectory, manifold or output.",
        )
    require_tokens(checkpoint)


def score_tokens(
    scores: Scores,
    checkpoint: Checkpoint,
    batches: Sequence[Batch],
    options: ScoreOptions,
    *,
    state: SavedState = SavedState(),
    progress: Progress = SILENT,
) -> Scores:
    """Add to the scores of all other groups a group of tokens for every block but the last.

    Args:
        batches: on which the exact estimator runs.

    Raises:
        ArchitectureError: the tokens cannot merge. ArtifactError: another run left the state that is to be resumed.
    """
    tokens = require_tokens(checkpoint)
    objective = Objective.of(options)
    header, model, structure = scores.header, checkpoint.model, checkpoint.structure
    jobs = [
        Job(
            f"exact {group}",
            batch.work,
            functools.partial(merge_batch, model, structure, tokens, group, batch, objective),
        )
        for group in tokens.block_of
        for batch in (batch.to(checkpoint.device) for batch in batches)
    ]
    identity = RunIdentity(TOKEN, structure, header.options, header.inputs, header.workload, batches)
    totals = run_jobs(jobs, identity, state, progress, processes=checkpoint.processes)
    costs = measure_token_costs(model, structure, tokens, checkpoint.input.example(header.workload))
    importance, errors, groups = dict(scores.importance), dict(scores.standard_error), dict(header.groups)
    widths = np.diff([0, *ladder(tokens.mergeable)])
    for name, block in tokens.block_of.items():
        importance[name] = per_unit(totals.mean(name).numpy(), tokens.mergeable)
        each = np.repeat(totals.standard_error(name).float().numpy(), widths)
        errors[name] = np.append(each, each[-1])
        groups[name] = GroupScores(
            kind=TOKEN,
            block=block,
            units=tokens.mergeable,
            unit_macs=token_saving(costs, block),
            unit_parameters=0,
            estimator=ESTIMATOR,
            samples=totals.counts[name],
        )
    return Scores(header.model_copy(update={"groups": groups, "tokens": costs}), importance, errors)
