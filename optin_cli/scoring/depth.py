"""Score whole blocks: what a model loses as one block after another goes.

When the blocks p + 1 ... q go, the last consumer of block p, y = W x, is re-solved so that the residual sum S_p behind
it becomes S_q, as far as that is linear in x. To second order what is left costs

    loss(p, q) = T tr(G_q E[e e^T]),   e = S_q - S_p - V x,   V = argmin E|L_q^T e|^2,   G_q = L_q L_q^T

with G_q the curvature of the sketch's random scalar in S_q and T the positions of a sample, as in removal curves of
units (`curves.py`, `moments.py`). The error is that of tokens which V has not seen, by generalised cross-validation
(Golub, Heath & Wahba 1979). Blocks go greedily: each time the one that adds least to F, the sum of loss(p, q) over all
runs of blocks that are gone. The first block always stays, since no consumer in front of it can make up for it.

F sees one consumer re-solved for small errors; refit re-solves all, and errors are not small. So at a few depths the
model is refitted without the first k blocks and once, at one share of the MACs, without units alone, and all are
compared with the original on samples that refit has not seen:

    loss(k) = F(k) (D(k) / F(k)) (L_units / D_units)

D: mean trajectory distance of a refitted model, each of its blocks compared with the last that went behind it; D(k) /
F(k) is interpolated between the depths that were measured. L: the importance that the mask of units loses. A block's
importance is what loss(k) gains by it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from optin_cli.artifacts.base import Vector64
from optin_cli.artifacts.costs import BLOCK, BlockExchange
from optin_cli.artifacts.scores import GroupScores, Scores
from optin_cli.checkpoints.checkpoint import Checkpoint
from optin_cli.checkpoints.checks import require_depth
from optin_cli.data.batch import Batch
from optin_cli.errors import UsageError
from optin_cli.model.costs import measure_costs
from optin_cli.model.cut import prune_copy
from optin_cli.model.definite import damped_cholesky
from optin_cli.model.depth import Depth
from optin_cli.model.forward import Hooks, Trajectory, hooks, observe, run_until_stopped
from optin_cli.model.structure import Structure
from optin_cli.model.units import Group, Keeping
from optin_cli.options.scoring import CRITERIA, ScoreOptions
from optin_cli.processes.portions import cut_portions, sum_portions
from optin_cli.progress import SILENT, Part, Progress
from optin_cli.refit.design_matrix import output_rows
from optin_cli.refit.original_stream import at_residual_sum
from optin_cli.refit.refit import refit_model
from optin_cli.refit.residual_stream import refittable
from optin_cli.scoring.curves import Curve, curve_importance
from optin_cli.scoring.exact import trajectory_distance
from optin_cli.scoring.moments import empty_moments, sensitivity_batch
from optin_cli.scoring.sketch import Objective
from optin_cli.scoring.token_rate import JUDGED, reachable
from optin_cli.searching.choose import choose
from optin_cli.searching.costs import importance_lost
from optin_cli.searching.limits import Limits

RUN = 3
"""Blocks in a row for which one consumer is taken to make up; a longer run counts as several."""
SHARES = (1 / 8, 1 / 4, 1 / 2)
"""Of the blocks that go: at which depths the model is refitted."""
ESTIMATOR = "obs"
ORDER = 0.4
"""About the share of the run that finding the order takes, for progress."""


def check_blocks(checkpoint: Checkpoint, options: ScoreOptions) -> None:
    """Refuse to score blocks that cannot go (ArchitectureError), or beside tokens, or by a baseline (UsageError)."""
    if CRITERIA[options.criterion].terms is None:
        raise UsageError(
            f"The criterion {options.criterion} judges single layers, not whole blocks.",
            hint="Score blocks with --criterion trajectory, manifold or output.",
        )
    if "tokens" in options.units:
        raise UsageError(
            "Blocks and tokens cannot be scored together: what merging tokens saves depends on the blocks behind it.",
            hint="Leave one of them out of --units.",
        )
    require_depth(checkpoint)


def without(blocks: Sequence[str]) -> dict[str, list[int]]:
    """The mask that removes blocks, by their names."""
    return {f"{name}.{BLOCK}": [] for name in blocks}


def standing_for(reference: Trajectory, structure: Structure, gone: Keeping) -> Trajectory:
    """The original's trajectory with every block's output replaced by that of the last block that goes behind it."""
    names, dropped = [block.name for block in structure.blocks], set(structure.dropped(gone))
    features = list(reference.features)
    for place in reversed(range(len(names) - 1)):
        same_stack = names[place].partition(".")[0] == names[place + 1].partition(".")[0]
        if names[place + 1] in dropped and same_stack:
            features[place] = features[place + 1]
    return replace(reference, features=features)


@dataclass(frozen=True)
class Folding:
    """Sums over tokens of what the last consumer of a block reads, x with a last 1, which are added to in place.

    gram: of x x^T (k, k). crosses, sizes: by name of each of the next RUN blocks, of x (L_q^T (S_q - S_p))^T (k, d) and
    of its squared size (1,). All float64: 8 (k^2 + RUN k d) bytes a block.
    """

    gram: torch.Tensor
    crosses: dict[str, torch.Tensor]
    sizes: dict[str, torch.Tensor]

    def add(self, x: torch.Tensor, changes: Mapping[str, torch.Tensor]) -> None:
        """Add tokens x (n, k) with L_q^T (S_q - S_p) as rows (n, d), by block."""
        self.gram.add_(x.T @ x)
        for name, change in changes.items():
            self.crosses[name].add_(x.T @ change)
            self.sizes[name].add_(change.double().square().sum())

    def tensors(self) -> list[torch.Tensor]:
        """Everything that is summed."""
        return [self.gram, *self.crosses.values(), *self.sizes.values()]

    def loss(self, name: str, damping: float) -> float:
        """Cross-validated mean over tokens of the squared error |L_q^T e|^2 when the blocks up to `name` go."""
        tokens, columns = float(self.gram[-1, -1]), len(self.gram)
        factor, shift = damped_cholesky(self.gram, damping * float(self.gram.diagonal().mean()))
        inverse = torch.cholesky_inverse(factor)
        cross = self.crosses[name]
        solved = inverse @ cross
        squared = float(self.sizes[name]) - float((solved * (2 * cross - self.gram @ solved)).sum())
        freedom = columns - float(shift) * float(inverse.diagonal().sum())
        return max(squared, 0.0) / tokens / max(1 - freedom / tokens, 1 / tokens) ** 2


def last_consumers(structure: Structure, depth: Depth) -> dict[str, Group]:
    """Of each block the group whose consumer comes last, by name of the block; blocks without any have none."""
    return {group.block: group for group in structure.groups if group.block in dict(depth.blocks)}


def measure_curvatures(
    checkpoint: Checkpoint, groups: Sequence[Group], batches: Sequence[Batch], options: ScoreOptions, progress: Progress
) -> dict[str, torch.Tensor]:
    """T G of the residual sum behind each group's consumer, (d, d) by name of its block."""
    structure, processes, objective = (
        checkpoint.structure.with_groups(groups),
        checkpoint.processes,
        Objective.of(options),
    )

    def measure(portion: range) -> list[torch.Tensor]:
        moments = empty_moments(checkpoint.model, groups)
        for number in portion:
            progress.update(number, len(batches), "curvature behind blocks")
            here = batches[number].to(checkpoint.device)
            sensitivity_batch(
                checkpoint.model, structure, moments, here, objective, probes=options.probes, seed=options.seed
            )
        return [tensor for own in moments.values() for tensor in own.tensors().values()]

    sums = iter(sum_portions(processes, cut_portions([batch.work for batch in batches], processes.count), measure))
    moments = empty_moments(checkpoint.model, groups)
    moments = {path: own.of({name: next(sums) for name in own.tensors()}) for path, own in moments.items()}
    return {group.block: moments[group.consumer].output_curvature() for group in groups}


def root_of(matrix: torch.Tensor) -> torch.Tensor:
    """L with L L^T the positive semi-definite matrix: (d, d)."""
    values, vectors = torch.linalg.eigh(matrix)
    root: torch.Tensor = vectors * values.clamp(min=0.0).sqrt()
    return root


@torch.no_grad()
def streams(
    model: nn.Module, groups: Mapping[str, Group], batch: Batch
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """What each consumer reads, with a last 1, and the residual sum behind it: (tokens, k) and (tokens, d) by block."""
    inputs: dict[str, torch.Tensor] = {}
    sums: dict[str, torch.Tensor] = {}

    def real(tensor: torch.Tensor) -> torch.Tensor:
        rows = output_rows(tensor, -1, batch.size)
        return rows[batch.mask_for(rows)]

    def watch(hook: Hooks, block: str, group: Group) -> None:
        def see(_module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
            x = real(arguments[0])
            inputs[block] = torch.cat([x, x.new_ones(len(x), 1)], dim=1)

        def arrive(total: torch.Tensor) -> None:
            sums[block] = real(total).clone()

        hook.before(model.get_submodule(group.consumer), see)
        at_residual_sum(hook, model, group, arrive)

    with hooks() as hook:
        for block, group in groups.items():
            watch(hook, block, group)
        run_until_stopped(model, batch.inputs)
    return inputs, sums


def measure_foldings(
    checkpoint: Checkpoint,
    groups: Mapping[str, Group],
    roots: Mapping[str, torch.Tensor],
    batches: Sequence[Batch],
    progress: Progress,
) -> dict[str, Folding]:
    """How linear what the next blocks do is in what each block's last consumer reads. roots: L by block."""
    names, processes = list(groups), checkpoint.processes
    following = {name: names[place + 1 : place + 1 + RUN] for place, name in enumerate(names)}

    def measure(portion: range) -> list[torch.Tensor]:
        found = dict[str, Folding]()
        for number in portion:
            progress.update(number, len(batches), "what blocks do")
            inputs, sums = streams(checkpoint.model, groups, batches[number].to(checkpoint.device))
            for name, x in inputs.items():
                if name not in found:
                    gram = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64, device=x.device)
                    crosses = {other: gram.new_zeros(len(gram), roots[other].shape[1]) for other in following[name]}
                    found[name] = Folding(gram, crosses, {other: gram.new_zeros(1) for other in following[name]})
                steps = {other: (sums[other] - sums[name]) @ roots[other].to(x) for other in following[name]}
                found[name].add(x, steps)
        return [tensor for name in names for tensor in found[name].tensors()]

    sums = iter(sum_portions(processes, cut_portions([batch.work for batch in batches], processes.count), measure))
    return {
        name: Folding(next(sums), *({other: next(sums) for other in following[name]} for _ in range(2)))
        for name in names
    }


def removal_order(names: Sequence[str], losses: Mapping[tuple[str, str], float]) -> tuple[list[str], Vector64]:
    """Blocks in the order in which they go, all but the first, and F after each: (blocks - 1,).

    Args:
        names: of all blocks in order.
        losses: loss(p, q) of up to RUN blocks behind p. A longer run is taken as several.
    """

    def total(gone: set[str]) -> float:
        lost, start = 0.0, 0
        for place in range(1, len(names)):
            if names[place] not in gone:
                start = place
            elif place + 1 == len(names) or names[place + 1] not in gone or place - start == RUN:
                lost, start = lost + losses[names[start], names[place]], place
        return lost

    gone: list[str] = []
    found: list[float] = []
    left = list(names[1:])
    while left:
        best = min(left, key=lambda name: total({*gone, name}))
        left.remove(best)
        gone.append(best)
        found.append(total({*gone}))
    return gone, np.array(found)


def find_order(
    checkpoint: Checkpoint,
    depth: Depth,
    batches: tuple[Sequence[Batch], Sequence[Batch]],
    options: ScoreOptions,
    progress: Progress,
) -> tuple[list[str], Vector64]:
    """The order in which blocks go, and F after each. batches: for the curvature, and for what blocks do.

    Raises:
        CheckpointError: the curvature or the sums are not finite.
    """
    groups = last_consumers(checkpoint.structure, depth)
    curvatures = measure_curvatures(checkpoint, [*groups.values()], batches[0], options, Part(progress, 0, 0.5))
    roots = {name: root_of(matrix) for name, matrix in curvatures.items()}
    foldings = measure_foldings(checkpoint, groups, roots, batches[1], Part(progress, 0.5, 1))
    losses = {
        (name, other): folding.loss(other, options.damping)
        for name, folding in foldings.items()
        for other in folding.crosses
    }
    return removal_order([name for name, _ in depth.blocks], losses)


@torch.no_grad()
def mean_distance(
    checkpoint: Checkpoint, model: nn.Module, gone: Keeping, batches: Sequence[Batch], options: ScoreOptions
) -> float:
    """Mean trajectory distance of a model, without some blocks perhaps, from the original.

    As many rows at once as `options` say, or fewer where their outputs would be too large.
    """
    objective = Objective.of(options)
    longest = max(next(iter(batch.inputs.values())).shape[-1] for batch in batches)
    size = checkpoint.input.rows_at_once(options.rows, longest)
    parts = [part for whole in batches for part in whole.parts(size)]

    def distance(batch: Batch) -> float:
        batch = batch.to(checkpoint.device)
        theirs = standing_for(observe(checkpoint.model, checkpoint.structure, batch), checkpoint.structure, gone)
        mine = observe(model, checkpoint.structure, batch)
        found = trajectory_distance(mine, theirs, checkpoint.structure, batch, objective, 0)
        return float(found.double().sum())

    found = checkpoint.processes.map(distance, parts, [part.work for part in parts])
    return sum(found) / sum(part.size for part in parts)


def refitted_distance(
    checkpoint: Checkpoint,
    kept: Keeping,
    fitting: Sequence[Batch],
    judged: Sequence[Batch],
    options: ScoreOptions,
    progress: Progress,
) -> float:
    """Mean trajectory distance from the original of the model that is pruned to a mask and refitted."""
    pruned = prune_copy(checkpoint.model, checkpoint.structure, kept)
    refit_model(pruned, fitting, processes=checkpoint.processes, progress=progress)
    return mean_distance(checkpoint, pruned.model, kept, judged, options)


def measure_exchange(
    scores: Scores,
    checkpoint: Checkpoint,
    order: Sequence[str],
    batches: Sequence[Batch],
    options: ScoreOptions,
    progress: Progress,
) -> BlockExchange | None:
    """What refit leaves of the loss of blocks and of units; None where nothing is to be, or can be, compared.

    Args:
        scores: of units. order: in which blocks go.
    """
    judging = len(batches) // JUDGED
    fitting, judged = batches[: len(batches) - judging], batches[len(batches) - judging :]
    if options.token_exchange is None or not judging or not refittable(fitting):
        return None
    share = reachable(scores, [[]], options.token_exchange)
    if share is None:
        return None
    depths = sorted({max(1, round(part * (len(order) + 1))) for part in SHARES})
    kept = choose(scores, Limits(keep_macs=share))
    masks: list[Mapping[str, list[int]]] = [kept, *(without(order[:number]) for number in depths)]
    distances = []
    for number, mask in enumerate(masks):
        part = Part(progress, number / len(masks), (number + 1) / len(masks), "comparing with blocks, ")
        distances.append(refitted_distance(checkpoint, mask, fitting, judged, options, part))
    lost = importance_lost(kept, scores.importance)
    if min(lost, *distances) <= 0:
        return None
    return BlockExchange(
        share=share, units_lost=lost, units_distance=distances[0], depths=depths, distances=distances[1:]
    )


def exchanged(losses: Vector64, exchange: BlockExchange | None) -> Vector64:
    """The losses F (k,) of removing 1, 2, … blocks on the scale of units' importances."""
    if exchange is None:
        return losses
    measured = np.array(exchange.distances) / losses[np.array(exchange.depths) - 1]
    left = np.interp(np.arange(1, len(losses) + 1), exchange.depths, measured)
    scaled: Vector64 = losses * left * exchange.units_lost / exchange.units_distance
    return scaled


def block_importance(losses: Vector64) -> Vector64:
    """What each block adds to the loss, in the order in which they go: rising, so that they go in that order.

    The last one, which always stays, gets as much as the one before it.
    """
    steps = np.maximum(np.diff([0.0, *losses]), 0.0)
    order = torch.arange(len(steps) + 1)
    curve = Curve(order, torch.from_numpy(np.append(steps, steps.max())))
    return curve_importance(curve).double().numpy()


def score_blocks(
    scores: Scores,
    checkpoint: Checkpoint,
    exact_batches: Sequence[Batch],
    batches: Sequence[Batch],
    options: ScoreOptions,
    progress: Progress = SILENT,
) -> Scores:
    """Add to the scores of units a group of one unit for every block.

    Args:
        exact_batches: on which the curvature is measured. batches: all calibration batches.
    """
    depth, header = require_depth(checkpoint), scores.header
    part = Part(progress, 0, ORDER)
    order, losses = find_order(checkpoint, depth, (exact_batches, batches), options, part)
    exchange = measure_exchange(scores, checkpoint, order, batches, options, Part(progress, ORDER, 1))
    found = dict(zip([*order, depth.blocks[0][0]], block_importance(exchanged(losses, exchange)), strict=True))
    example = checkpoint.input.example(header.workload)
    _, costs = measure_costs(checkpoint.model, checkpoint.structure, example, checkpoint.weight_bytes)
    importance, groups = dict(scores.importance), dict(header.groups)
    for name, _ in depth.blocks:
        group = f"{name}.{BLOCK}"
        importance[group] = np.array([found[name]], dtype=np.float32)
        samples = sum(batch.size for batch in exact_batches)
        groups[group] = GroupScores(**costs[group].model_dump(), estimator=ESTIMATOR, samples=samples)
    progress.update(1, 1, "importances of blocks")
    update = {"groups": groups, "block_exchange": exchange}
    return Scores(header.model_copy(update=update), importance, scores.standard_error)
