"""Score a checkpoint larger than memory block by block, with the numbers of a run in memory.

All batches go through a block before the next one is opened, and the inputs of every block wait in files. Then blocks
are opened again, from the last to the first: each computes its outputs once more and takes the gradients at them, and
leaves those at its inputs for the block before. So the weights, gradients and second moments of one block are held at a
time, and of the others their importances.

The scalar S of the sketch is a sum over blocks. The part that belongs to a block's output joins the gradient where that
output is the next block's input, in the order in which a backward pass through the whole model adds them up, so that
rounding is the same too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from optin_cli.artifacts.base import Options
from optin_cli.artifacts.scores import Scores
from optin_cli.checkpoints.checkpoint import Checkpoint
from optin_cli.checkpoints.streaming import REST, Streaming
from optin_cli.data.batch import Batch
from optin_cli.errors import UsageError
from optin_cli.model.forward import Trajectory, as_tokens
from optin_cli.model.head_dims import Products
from optin_cli.model.outline import Call, Outline, find_outline
from optin_cli.model.structure import Structure
from optin_cli.model.units import Group
from optin_cli.options.scoring import ScoreOptions
from optin_cli.progress import SILENT, Part, Progress
from optin_cli.scoring.accumulate import Accumulator, Job, RunIdentity, SavedState, require_finite, run_jobs
from optin_cli.scoring.calibration import Calibration
from optin_cli.scoring.moments import Layer, Moments, Pass, empty_moments, watch_passes, with_intercept
from optin_cli.scoring.one_shot import assemble_scores, curved_groups, estimator_of, scored_products
from optin_cli.scoring.products import DimMoments, DimWatch, empty_dims
from optin_cli.scoring.sketch import Objective, probe_scalar, probe_scalars
from optin_cli.scoring.spill import PART, Spill, spilling

CURVES = 0.25
"""About what removal curves take beside the backward passes of a block, for progress."""
HINT = "Pass other options, or --no-stream to score with the whole model in memory."


def check_streamed(checkpoint: Checkpoint, options: ScoreOptions) -> None:
    """Refuse what is not scored block by block (UsageError)."""
    if checkpoint.processes.count > 1:
        raise UsageError("Processes do not share the scoring of a model that is streamed.", hint="Leave out torchrun.")
    if options.unstreamed is not None:
        raise UsageError(
            f"A checkpoint that is streamed does not give {options.unstreamed}; expected a trajectory criterion, the "
            "estimator obs and parts of blocks.",
            hint=HINT,
        )
    for group in checkpoint.structure.groups:
        inside = f"{group.block_path}."
        if not (group.consumer.startswith(inside) and group.gate.startswith(inside)):
            raise UsageError(f"{group.name} reaches beyond its block, so it is not streamed.", hint=HINT)


@dataclass(frozen=True)
class Step:
    """A part of a run, after which an interrupted one can go on. run: adds what it finds to the totals."""

    what: str
    weight: float
    run: Callable[[Accumulator, Progress], None]


@dataclass(frozen=True)
class StreamedRun:
    """A run through all blocks, forward and backward.

    batches: on the device of open blocks. importance: of every group, (units,) float32, filled in place. curved: groups
    with removal curves. centred: consumers whose intercept is re-solved too. products: query and key layers whose
    dimensions are scored.
    """

    identity: RunIdentity
    streaming: Streaming
    batches: Sequence[Batch]
    options: ScoreOptions
    importance: Mapping[str, torch.Tensor]
    curved: Sequence[Group]
    centred: frozenset[str]
    products: Sequence[Products]
    spill: Spill

    @property
    def structure(self) -> Structure:
        """With the groups to score."""
        return self.identity.structure

    @property
    def _counted(self) -> str:
        """What goes through each block, in words."""
        return f"{len(self.batches)} batches"

    def steps(self) -> list[Step]:
        """Everything to do, in order."""
        blocks, backward = self.structure.blocks, (1 + 1.5 * self.options.probes) * (1 + CURVES)
        return [
            Step("embeddings", 0.1, self.enter),
            *(Step(f"{b.name} forward", 1.0, functools.partial(self.advance, i)) for i, b in enumerate(blocks)),
            Step("head", 0.5, self.leave),
            *(
                Step(f"{blocks[i].name} backward", backward, functools.partial(self.score_block, i))
                for i in reversed(range(len(blocks)))
            ),
        ]

    def enter(self, _totals: Accumulator, progress: Progress) -> None:
        """Keep what the first block gets, and what every block is given beside hidden states."""
        with self.streaming.opened(REST):
            outline = self._outline()
            for number, batch in self._numbered(progress):
                hidden, calls = outline.calls(batch.inputs)
                if number == 0:
                    self._require_room(hidden)
                self.spill.put("calls", 0, number, [(call.arguments, dict(call.named)) for call in calls])
                self.spill.put("inputs", 0, number, hidden)

    @torch.no_grad()
    def advance(self, place: int, _totals: Accumulator, progress: Progress) -> None:
        """Keep what the next block gets."""
        path = self.structure.blocks[place].path
        with self.streaming.opened(path):
            block = self.streaming.model.get_submodule(path)
            for number, _ in self._numbered(progress):
                output = self._call(place, number)(block, self._get("inputs", place, number))
                self.spill.put("inputs", place + 1, number, output)

    def leave(self, _totals: Accumulator, progress: Progress) -> None:
        """Keep the gradients at the last block's output, (probes, rows, tokens, width)."""
        model, count = self.streaming.model, len(self.structure.blocks)
        how = {"probes": self.options.probes, "seed": self.options.seed}
        with self.streaming.opened(REST), torch.enable_grad():
            outline = self._outline()
            for number, batch in self._numbered(progress):
                hidden = self._get("inputs", count, number).requires_grad_()
                with outline.ending_in(hidden):
                    found = [
                        torch.autograd.grad(scalar.sum(), hidden, retain_graph=left > 0)[0]
                        for left, scalar in probe_scalars(
                            model, self.structure, batch, Objective.of(self.options), **how
                        )
                    ]
                self.spill.put("slopes", count, number, torch.stack(found))

    def score_block(self, place: int, totals: Accumulator, progress: Progress) -> None:
        """Score the units of a block, and keep the gradients at its inputs."""
        self.spill.drop("slopes", place + 2)
        self.spill.drop("inputs", place + 1)
        name = self.structure.blocks[place].name
        groups = [group for group in self.structure.groups if group.block == name]
        curved = [group for group in groups if group in self.curved]
        products = [one for one in self.products if one.block == name]
        with self.streaming.opened(self.structure.blocks[place].path):
            moments, dims = empty_moments(self.streaming.model, curved), empty_dims(self.streaming.model, products)
            self._measure(place, groups, (moments, dims), totals, Part(progress, 0, 1 / (1 + CURVES)))
        found = {group.name: totals.mean(group.name) for group in groups}
        require_finite({**found, **{path: own.diagonals() for path, own in moments.items()}})
        for number, group in enumerate(curved):
            progress.update(1 + CURVES * number / len(curved), 1 + CURVES, f"order of {group.name}")
            found[group.name] = self._by_curve(group, moments, found[group.name])
        found |= {path: own.importance(totals.mean(path)) for path, own in dims.items()}
        require_finite(found)
        for path, importance in found.items():
            self.importance[path].copy_(importance)

    def _measure(
        self,
        place: int,
        groups: Sequence[Group],
        summed: tuple[Mapping[str, Moments], Mapping[str, DimMoments]],
        totals: Accumulator,
        progress: Progress,
    ) -> None:
        """Add what single units of an open block cost to the totals. summed: what batches are added to beside."""
        moments, dims = summed
        extra = {
            f"{name}.{path}": t for part in summed for path, own in part.items() for name, t in own.tensors().items()
        }
        probes = self.options.probes

        def run(number: int, batch: Batch) -> dict[str, torch.Tensor]:
            watching = Pass(self.streaming.model, batch, moments)
            passes = functools.partial(self._passes, place, number)
            return watch_passes(watching, groups, passes, probes=probes, dims=DimWatch(dims))

        jobs = [
            Job(self._counted, batch.work * (1 + 1.5 * probes), functools.partial(run, i, batch))
            for i, batch in enumerate(self.batches)
        ]
        found = run_jobs(jobs, self.identity, SavedState(), progress, extra)
        totals.sums |= found.sums
        totals.squares |= found.squares
        totals.counts |= found.counts

    def _by_curve(self, group: Group, moments: dict[str, Moments], squared: torch.Tensor) -> torch.Tensor:
        """Importance of a group's units from their removal curve, with only their consumer open.

        Its moments go before the curve takes as much memory, unless another group has the same consumer.
        """
        with self.streaming.opened(group.consumer):
            layer = Layer.of(self.streaming.model, group, centred=group.consumer in self.centred)
            loss = layer.loss(moments[group.consumer], squared)
            if [other.consumer for other in self.curved].count(group.consumer) == 1:
                del moments[group.consumer]
            return loss.importance(self.options.damping).cpu()

    def _passes(self, place: int, number: int, leaves: list[torch.Tensor]) -> Iterator[None]:
        """Run a block forward, and backward once a probe; where a block is before it, keep the gradients for that."""
        block = self.streaming.model.get_submodule(self.structure.blocks[place].path)
        hidden = self._get("inputs", place, number).requires_grad_(place > 0)
        features = self._features(place, number, hidden)
        output = self._call(place, number)(block, hidden)
        slopes = self._get("slopes", place + 1, number)
        ends = [hidden] if place else leaves
        found = []
        for probe in range(self.options.probes):
            roots, above = [output], [slopes[probe]]
            if features:
                roots.append(self._scalar(number, features, probe))
                above.append(torch.ones_like(roots[-1]))
            left = self.options.probes - probe - 1
            found.append(torch.autograd.grad(roots, ends, above, retain_graph=left > 0, allow_unused=True)[0])
            yield
        if place:
            self.spill.put("slopes", place, number, torch.stack(found))

    def _features(self, place: int, number: int, hidden: torch.Tensor) -> list[torch.Tensor]:
        """Block outputs as `probe_scalar` takes them: that of the block before, and constants for the others.

        They must be made before the block runs: a backward pass then adds their gradients after the block's own.
        """
        if not place or not Objective.of(self.options).manifold:
            return []
        blocks = self.structure.blocks
        own = as_tokens(hidden, blocks[place - 1].layout, self.batches[number].size)
        constant = own.detach()[..., :1]
        return [own if other == place - 1 else constant for other in range(len(blocks))]

    def _scalar(self, number: int, features: list[torch.Tensor], probe: int) -> torch.Tensor:
        """The part of S that block outputs have."""
        objective = replace(Objective.of(self.options), output=0.0)
        trajectory, batch = Trajectory(features, []), self.batches[number]
        return probe_scalar(trajectory, self.structure, batch, objective, self.options.seed, probe).sum()

    def _outline(self) -> Outline:
        first, *_ = self.batches
        return find_outline(self.streaming.model, self.structure, first.inputs)

    def _require_room(self, hidden: torch.Tensor) -> None:
        """Refuse a disk without room for what waits at once: all inputs, and gradients at two blocks."""
        ids = [next(iter(batch.inputs.values())).numel() for batch in self.batches]
        levels = len(self.structure.blocks) + 1 + 2 * self.options.probes
        self.spill.require_room(hidden.nbytes * levels * sum(ids) // ids[0])

    def _numbered(self, progress: Progress) -> Iterator[tuple[int, Batch]]:
        """All batches with their numbers; counts their samples."""
        for number, batch in enumerate(self.batches):
            progress.update(number, len(self.batches), self._counted)
            yield number, batch
            progress.count(batch.size)

    def _get(self, what: str, place: int, number: int) -> torch.Tensor:
        found: torch.Tensor = self.spill.get(what, place, number).to(self.streaming.device)
        return found

    def _call(self, place: int, number: int) -> Call:
        arguments, named = self.spill.get("calls", 0, number)[place]
        return Call(arguments, named)


def score_streamed(
    checkpoint: Checkpoint,
    calibration: Calibration,
    options: ScoreOptions,
    *,
    seq_len: int | None,
    state: SavedState = SavedState(),
    progress: Progress = SILENT,
) -> Scores:
    """Score every unit, one block in memory at a time. Arguments and errors: as of `one_shot.score_checkpoint`.

    Raises also ArchitectureError: the blocks are no chain. OutputError: the disk cannot hold their inputs.
    """
    streaming, structure = checkpoint.streaming, checkpoint.structure
    assert streaming is not None
    curved = curved_groups(checkpoint, options)
    products = scored_products(structure, curved, options)
    estimators = {g.name: estimator_of(g, options, curved=g in curved) for g in structure.groups}
    estimators |= {one.name: "obs" for one in products}
    inputs = {**checkpoint.sources, "calibration": calibration.source}
    recorded: Options = {**options.recorded(), **checkpoint.computing}
    workload = checkpoint.input.workload(seq_len)
    identity = RunIdentity(PART, structure, recorded, inputs, workload, calibration.batches)
    importance = {group.name: torch.zeros(group.units) for group in structure.groups}
    importance |= {one.name: torch.zeros(one.dims) for one in products}
    centred = with_intercept(checkpoint.model, structure.with_groups(curved), calibration.batches[0])
    with spilling(state) as spill:
        batches = [batch.to(streaming.device) for batch in calibration.batches]
        run = StreamedRun(identity, streaming, batches, options, importance, curved, centred, products, spill)
        totals = _run_steps(run.steps(), identity, state, progress, importance)
    return assemble_scores(checkpoint, identity, estimators, importance, totals)


def _run_steps(
    steps: Sequence[Step],
    identity: RunIdentity,
    state: SavedState,
    progress: Progress,
    importance: Mapping[str, torch.Tensor],
) -> Accumulator:
    """Run the steps that an interrupted run left, saving the state after each (ArtifactError if it is another's)."""
    totals, fingerprint = Accumulator(importance), ""
    if state.path is not None:
        fingerprint = identity.fingerprint()
        if state.resume and state.path.exists():
            totals = Accumulator.load(state.path, fingerprint, importance)
    whole = sum(step.weight for step in steps)
    for number, step in enumerate(steps):
        if number < totals.done:
            continue
        start = sum(each.weight for each in steps[:number]) / whole
        part = Part(progress, start, start + step.weight / whole, f"{step.what}, ")
        step.run(totals, part)
        totals.done = number + 1
        if state.path is not None:
            totals.save(state.path, fingerprint)
    progress.update(1, 1, "averaging")
    return totals
