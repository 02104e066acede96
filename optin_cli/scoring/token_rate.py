"""Bring tokens' importances onto the scale of other units'.

Importance of tokens is the model's loss before refit, which makes up for little of it; that of units is an estimate of
the loss after refit, or by the sketch before it. So equal importance does not mean equal loss. The difference is
measured: the model is pruned to one share of its MACs by units alone, and by merging alone, each refitted, and each
compared with the original on samples that refit has not seen:

    rate = (D_tokens / L_tokens) / (D_units / L_units)

D: mean trajectory distance of the refitted model. L: the importance that its mask loses. Tokens' importances are
multiplied by the rate.
"""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from optin_cli.artifacts.costs import TOKEN, TokenExchange
from optin_cli.artifacts.scores import Scores
from optin_cli.checkpoints.checkpoint import Checkpoint
from optin_cli.checkpoints.checks import require_tokens
from optin_cli.data.batch import Batch
from optin_cli.errors import BudgetError
from optin_cli.model.cut import prune_copy
from optin_cli.model.forward import hooks, observe
from optin_cli.model.tokens import Tokens, cluster_means
from optin_cli.options.scoring import ScoreOptions
from optin_cli.progress import SILENT, Part, Progress
from optin_cli.refit.refit import refit_model
from optin_cli.refit.residual_stream import refittable
from optin_cli.scoring.exact import trajectory_distance
from optin_cli.scoring.sketch import Objective
from optin_cli.searching.choose import choose
from optin_cli.searching.costs import importance_lost
from optin_cli.searching.limits import Limits

JUDGED = 4
"""One batch in four compares the refitted models with the original."""


def exchange_tokens(
    scores: Scores,
    checkpoint: Checkpoint,
    batches: Sequence[Batch],
    options: ScoreOptions,
    *,
    progress: Progress = SILENT,
) -> Scores:
    """The scores with tokens' importances, and their standard errors, multiplied by the measured rate.

    As they are where `options` ask for no exchange, or there are too few samples to refit on and to judge by.

    Args:
        scores: with tokens. batches: all calibration batches.
    """
    judging = len(batches) // JUDGED
    fitting, judged = batches[: len(batches) - judging], batches[len(batches) - judging :]
    if options.token_exchange is None or not judging or not refittable(fitting):
        return scores
    tokens = require_tokens(checkpoint)
    names: dict[bool, list[str]] = {True: [], False: []}
    for name, group in scores.header.groups.items():
        names[group.kind == TOKEN].append(name)
    share = reachable(scores, [*names.values()], options.token_exchange)
    if share is None:
        return scores
    lost, distance = {}, {}
    for number, merging in enumerate((False, True)):
        kept = choose(scores, Limits(keep_macs=share, protect=tuple(names[not merging])))
        lost[merging] = importance_lost(kept, scores.importance)
        pruned = prune_copy(checkpoint.model, checkpoint.structure, kept)
        part = Part(progress, number / 2, (number + 1) / 2, "comparing with tokens, ")
        refit_model(pruned, fitting, processes=checkpoint.processes, progress=part)
        distance[merging] = refitted_distance(checkpoint, pruned.model, tokens, judged, options)
    if min(*lost.values(), *distance.values()) <= 0:
        return scores
    exchange = TokenExchange(
        share=share,
        units_lost=lost[False],
        units_distance=distance[False],
        tokens_lost=lost[True],
        tokens_distance=distance[True],
        rate=distance[True] / lost[True] / (distance[False] / lost[False]),
    )
    scaled = set(names[True])
    return Scores(
        scores.header.model_copy(update={"token_exchange": exchange}),
        {n: v * v.dtype.type(exchange.rate) if n in scaled else v for n, v in scores.importance.items()},
        {n: v * v.dtype.type(exchange.rate) if n in scaled else v for n, v in scores.standard_error.items()},
    )


def reachable(scores: Scores, kinds: Sequence[Sequence[str]], asked: float) -> float | None:
    """The asked share, or half way to the least that one kind of groups can reach while the other stays whole."""
    least = max(_least(scores, Limits(keep_macs=asked, protect=tuple(others))) for others in kinds)
    share = asked if least == 0 else (1 + least) / 2
    return share if share < 1 else None


def _least(scores: Scores, limits: Limits) -> float:
    """The least share of MACs that can be reached where the limits cannot be met, 1 where none is; 0 where they can."""
    try:
        choose(scores, limits)
    except BudgetError as error:
        return error.reachable[1] if error.reachable else 1.0
    return 0.0


@torch.no_grad()
def refitted_distance(
    checkpoint: Checkpoint, model: nn.Module, tokens: Tokens, batches: Sequence[Batch], options: ScoreOptions
) -> float:
    """Mean trajectory distance of a pruned model from the original, whose tokens are averaged as they merge in it."""

    def distance(batch: Batch) -> float:
        batch = batch.to(checkpoint.device)
        reference = observe(checkpoint.model, checkpoint.structure, batch)
        with merging_of(model, tokens) as places:
            mine = observe(model, checkpoint.structure, batch)
        for z, place in enumerate(places):
            if place is not None:
                reference.features[z] = cluster_means(reference.features[z], place)
        found = trajectory_distance(mine, reference, checkpoint.structure, batch, Objective.of(options), 0)
        return float(found.double().sum())

    found = checkpoint.processes.map(distance, batches, [batch.work for batch in batches])
    return sum(found) / sum(batch.size for batch in batches)


@contextlib.contextmanager
def merging_of(model: nn.Module, tokens: Tokens) -> Iterator[list[torch.Tensor | None]]:
    """Collect of one pass, block by block, where each original token is after it: (rows, tokens), None if apart."""
    places: list[torch.Tensor | None] = []

    def see(module: nn.Module, _arguments: object, _output: object) -> None:
        merged = tokens.positions(module)
        # After the last block every token has a hidden state again, whatever merged before.
        last = len(places) == len(tokens.blocks) - 1
        places.append(merged.source if merged is not None else places[-1] if last else None)

    with hooks() as hook:
        for _, path in tokens.blocks:
            hook.after(model.get_submodule(path), see)
        yield places
