"""Regression targets that align a pruned model's residual stream with the original's.

A consumer's output enters the residual sum by a scaled permutation: layer scale, batch norm, windows reversed and
shifted, padding cropped. No description says which; autograd finds it.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from optin_cli.artifacts.mask import layout_class
from optin_cli.data.batch import Batch
from optin_cli.errors import ArchitectureError
from optin_cli.model.cut import PrunedModel
from optin_cli.model.depth import depth_of
from optin_cli.model.forward import StopForward, hooks, run_until_stopped
from optin_cli.model.linear import is_linear, weight_by_outputs
from optin_cli.model.readout import run_hidden
from optin_cli.model.replay import Prefixes, is_chain
from optin_cli.model.structure import Structure
from optin_cli.model.units import Group, Positions
from optin_cli.options.refit import MIN_REFIT_SAMPLES
from optin_cli.processes.portions import cut_portions, own_portions, sum_portions
from optin_cli.processes.processes import ALONE, Processes
from optin_cli.progress import SILENT, Progress
from optin_cli.refit.design_matrix import choose_positions, input_rows, is_consumer, output_rows, take
from optin_cli.refit.original_stream import Targets, at_residual_sum
from optin_cli.refit.sparing import Around, Passed, Sparing, last_in_block, modules_around, standing_in
from optin_cli.refit.waypoint import Waypoint

HOLDOUT = 4
"""One sample in four is held out to judge a refit."""


@dataclass(frozen=True)
class Gathered:
    """Tensors of one call of a consumer, shaped as the model has them.

    total: the sum of `out` and the residual stream, or `out` itself where there is none, with the graph that relates
    it to `out`. positions: of `total` within the whole sequence. around: the module that returned `out`, as in
    `sparing.Passed`.
    """

    x: torch.Tensor
    out: torch.Tensor
    total: torch.Tensor
    positions: Positions
    around: tuple[str, int | None] | None = None


def gather(
    model: nn.Module, structure: Structure, group: Group, batch: Batch, calls: int, *, silent: bool = False
) -> list[Gathered]:
    """Run a model up to where a consumer's output has joined the residual stream for the last of its `calls`.

    Args:
        silent: the consumer, which is linear, puts out zeros instead.
    """
    inputs: list[torch.Tensor] = []
    outputs: list[torch.Tensor] = []
    found: list[Gathered] = []
    block, consumer = model.get_submodule(group.block_path), model.get_submodule(group.consumer)
    around = Around()

    def zeros(x: torch.Tensor) -> torch.Tensor:
        return x.new_zeros(*x.shape[:-1], len(weight_by_outputs(consumer)))

    def on_consumer(_module: nn.Module, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        inputs.append(arguments[0].detach())
        torch.set_grad_enabled(True)  # until the sum; no_grad below restores what was
        outputs.append(output.detach().requires_grad_())
        around.output = outputs[-1].clone()  # the next module may work in place
        return around.output

    def arrive(total: torch.Tensor) -> None:
        number = len(found)
        found.append(Gathered(inputs[number], outputs[number], total, structure.positions(block), around.found))
        torch.set_grad_enabled(False)
        if calls == len(found):
            raise StopForward

    with hooks() as hook, standing_in(consumer, zeros) if silent else contextlib.nullcontext():
        hook.after(consumer, on_consumer)
        for path in modules_around(group):
            hook.after(model.get_submodule(path), lambda _module, _inputs, output, path=path: around.see(path, output))
        at_residual_sum(hook, model, group, arrive)
        run_until_stopped(model, batch.inputs)
    return found


def pull_back(group: Group, total: torch.Tensor, out: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """M^T value, for the linear map M by which `out` enters `total`: shaped as `out`."""
    (found,) = torch.autograd.grad(total, out, value, retain_graph=True, allow_unused=True)
    if found is None:
        raise ArchitectureError(
            f"The output of {group.consumer} does not reach the residual sum that the description names.",
            hint="Correct residual_sum of that group in the architecture description, or pass --no-refit.",
        )
    return found


def wanted_output(
    group: Group, out: torch.Tensor, total: torch.Tensor, target: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The output of a consumer that makes the residual sum equal the target.

    `out` enters `total` by a scaled permutation M = P diag(s) (layer scale, batch norm, windows), found by autograd:
    s = M^T 1, and the least change of `out` that does it is M^T (target - total) / s^2.

    Returns:
        (wanted output, scale s, target as `out` is laid out), each shaped as `out`; the scale is 0 where no
        part of `out` arrives (padding of windows).
    """
    scale = pull_back(group, total, out, torch.ones_like(total))
    safe = torch.where(scale == 0, 1.0, scale)
    change = pull_back(group, total, out, target - total.detach()) / safe.square()
    return out.detach() + change, scale, pull_back(group, total, out, target) / safe


def consumer_calls(model: nn.Module, structure: Structure, batch: Batch) -> dict[Group, int]:
    """How often each consumer runs in a forward pass, in order of their first runs."""
    counts: dict[Group, int] = {}
    with hooks() as hook:
        for group in structure.groups:

            def count(_module: nn.Module, _arguments: object, group: Group = group) -> None:
                counts[group] = counts.get(group, 0) + 1

            hook.before(model.get_submodule(group.consumer), count)
        with torch.no_grad():
            run_hidden(model, structure, batch.inputs)
    return counts


def refittable(batches: Sequence[Batch]) -> bool:
    """Whether there are enough samples to refit on, both held out and not."""
    judged = sum(int(held_out(batch).sum()) for batch in batches)
    samples = sum(batch.size for batch in batches)
    return samples >= MIN_REFIT_SAMPLES and 0 < judged < samples


def held_out(batch: Batch) -> torch.Tensor:
    """Which samples of a batch judge the refit, by their keys and so independent of order: (rows,) bool."""
    digests = (hashlib.sha256(key.encode()).digest() for key in batch.keys)
    return torch.tensor([digest[0] % HOLDOUT == 0 for digest in digests], device=batch.device)


@dataclass(frozen=True)
class RefitRun:
    """A refit in progress: both models run on the same batches while consumers are walked in order of execution.

    calls: how often each consumer runs, in that order. targets: the original's residual sums of the current block.
    prefixes: outputs of the pruned model's earlier blocks. processes: that share the batches. aims: consumers that make
    up for blocks that go behind theirs, each with its like in the last of these, at whose residual sum it aims.
    sparing: what passes through the current block spare those after them, where that is worth its memory. progress:
    counts samples.
    """

    pruned: PrunedModel
    batches: Sequence[Batch]
    calls: Mapping[Group, int]
    targets: Targets
    prefixes: Prefixes
    processes: Processes = ALONE
    aims: Mapping[Group, Group] = field(default_factory=dict)
    sparing: Sparing | None = None
    progress: Progress = SILENT

    def summed(self, measure: Callable[[range], Sequence[torch.Tensor]]) -> list[torch.Tensor]:
        """Sums over all batches; measure: those of consecutive batches, alike in shape for all."""
        return sum_portions(self.processes, cut_portions([batch.work for batch in self.batches]), measure)

    def aim(self, group: Group) -> Group:
        """The consumer of the original at whose residual sum a consumer aims."""
        return self.aims.get(group, group)

    def advance(self, group: Group) -> None:
        """Go on to the block of `group`; neither model may change any more before it."""
        self.targets.advance(self.aim(group))
        self.prefixes.advance(group)
        if self.sparing is not None:
            self.sparing.enter(group.block)
        if self.pruned.arrive is not None:
            self.pruned.arrive(group.block_path)

    def kept_outputs(self, group: Group) -> torch.Tensor | None:
        """Columns of a consumer's original output that its pruned one still has; None for all of them."""
        for other in self.pruned.structure.groups if not group.residual else ():
            for piece in other.slices:
                if piece.parameter == f"{group.consumer}.weight" and piece.axis == 0 and other.name in self.pruned.kept:
                    return piece.indices(other.units, self.pruned.kept[other.name])
        return None


@contextlib.contextmanager
def refitting(
    pruned: PrunedModel,
    batches: Sequence[Batch],
    *,
    processes: Processes = ALONE,
    waypoint: Waypoint | None = None,
    progress: Progress = SILENT,
) -> Iterator[RefitRun]:
    """Start a refit. Block outputs of both models are kept in temporary files, which are removed at the end.

    Args:
        processes: that share the batches. waypoint: of a streamed model, where to go on; its files stay. progress:
            counts samples.

    Raises UsageError: there are too many processes.
    """
    calls = consumer_calls(pruned.original, pruned.structure, batches[0])
    chain, sparing = pruned.arrive is not None, None
    if not chain and all(is_chain(model, pruned.structure, batches[0]) for model in (pruned.original, pruned.model)):
        chain = True
        # A GPU is done with a block sooner than its memory is free.
        sparing = Sparing(pruned.model) if batches[0].device.type == "cpu" else None
    portions = own_portions(cut_portions([batch.work for batch in batches], processes.count), processes)
    numbers = [number for portion in portions for number in portion]
    start = None if waypoint is None else waypoint.block
    if start is not None and pruned.restore is not None:
        pruned.restore(next(block.path for block in pruned.structure.blocks if block.name == start))
    folders = [None if waypoint is None else waypoint.folder / name for name in ("original", "pruned")]
    how: dict[str, Any] = {"chain": chain, "numbers": numbers, "start": start}
    targets = Targets(pruned.original, pruned.structure, batches, calls, folder=folders[0], **how)
    how |= {} if sparing is None else {"known": sparing.output}
    prefixes = Prefixes(pruned.model, pruned.structure, batches, folder=folders[1], **how)
    with targets, prefixes:
        yield RefitRun(
            pruned, batches, calls, targets, prefixes, processes, find_aims(pruned, calls), sparing, progress
        )


def find_aims(pruned: PrunedModel, calls: Mapping[Group, int]) -> dict[Group, Group]:
    """Of each block with others that go behind it, the consumers whose residual sum is what the block puts out."""
    depth = depth_of(pruned.structure.kinds)
    found: dict[Group, Group] = {}
    for block, last in (depth.standing_for(pruned.kept) if depth is not None else {}).items():
        mine, theirs = ([group for group in calls if group.block == name] for name in (block, last))
        likes = {layout_class(group.name, group.block): group for group in theirs}
        for group in mine if block != last else ():
            like = likes.get(layout_class(group.name, block))
            if like is not None and (group is mine[-1] or group.residual_sum is None):
                found[group] = like
    return found


@dataclass(frozen=True)
class Rows:
    """A consumer's rows over one call, at the chosen positions.

    x: (rows, positions, columns) that the weights multiply, None where they are not asked for. y: what they
    should give. found: what they give, or zeros where x is asked for. target: the residual sum aimed at. scale: of
    each entry of y in that sum; all four (rows, positions, outputs). taken: (rows, positions), true where a position
    counts.
    """

    x: torch.Tensor | None
    y: torch.Tensor
    found: torch.Tensor
    target: torch.Tensor
    scale: torch.Tensor
    taken: torch.Tensor


def stream_rows(
    run: RefitRun, group: Group, portion: range, *, inputs: bool = True
) -> Iterator[tuple[Rows, torch.Tensor]]:
    """The rows that a consumer is judged by, call by call, with which samples are held out.

    Args:
        portion: numbers of the batches. inputs: ask for x too.
    """
    model, outputs = run.pruned.model, run.kept_outputs(group)
    consumer = model.get_submodule(group.consumer)
    silent = inputs and is_linear(consumer) and run.calls[group] == 1
    for number in portion:
        batch = run.batches[number]
        known = contextlib.nullcontext() if run.sparing is None else run.sparing.skipping(number, group)
        with run.prefixes.skipping(number), known:
            found = gather(model, run.pruned.structure, group, batch, run.calls[group], silent=silent)
        if run.sparing is not None and silent:
            stream = _stream(run, group, found[0])
            run.sparing.note(number, group, Passed(found[0].x, found[0].around, stream))
        for call, whole in zip(found, run.targets.sums(number, run.aim(group)), strict=True):
            target = call.positions.average(whole)
            aim = target if outputs is None else target.index_select(group.axis, outputs.to(target.device))
            laid = [
                output_rows(group.rows_first(t), group.axis, batch.size)
                for t in (*wanted_output(group, call.out, call.total, aim), call.out.detach())
            ]
            chosen = choose_positions(consumer, batch.keys, laid[0].shape[1])
            y, scale, goal, given = (take(t, chosen) for t in laid)
            rows = None
            if inputs and is_consumer(consumer):
                rows = input_rows(consumer, group.rows_first(call.x), batch.size, chosen)
            taken = batch.mask_for(y) & (scale != 0).any(dim=-1)
            yield Rows(rows, y, given, goal, scale, taken), held_out(batch)
        run.progress.count(batch.size)


def _stream(run: RefitRun, group: Group, call: Gathered) -> torch.Tensor | None:
    """The block's output without that of its last consumer, which was silent, if it is their plain sum."""
    if not group.residual or group.residual_sum is not None or not last_in_block(run.calls, group):
        return None
    if call.total.shape != call.out.shape:
        return None
    some = torch.arange(call.out.numel(), dtype=call.out.dtype, device=call.out.device).reshape(call.out.shape)
    return call.total.detach() if torch.equal(pull_back(group, call.total, call.out, some), some) else None


def kept_columns(run: RefitRun, group: Group) -> torch.Tensor:
    """Columns of a consumer's original input that its pruned one still has."""
    piece = next(p for p in group.slices if p.parameter == f"{group.consumer}.weight" and p.axis != 0)
    return piece.indices(group.units, run.pruned.kept.get(group.name, range(group.units)))


def own_rows(
    run: RefitRun, group: Group, portion: range
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """What a consumer reads of its kept columns, and puts out, in the original model.

    Args:
        portion: numbers of the batches.

    Yields:
        (x, y, which rows count, which samples are held out) of each call, as `Rows` has them.
    """
    consumer = run.pruned.model.get_submodule(group.consumer)
    original, columns, outputs = run.targets.model, kept_columns(run, group), run.kept_outputs(group)
    assert is_consumer(consumer)
    for number in portion:
        batch = run.batches[number]
        found: list[tuple[torch.Tensor, torch.Tensor]] = []

        def collect(
            _module: nn.Module, arguments: tuple[torch.Tensor, ...], output: torch.Tensor, found: Any = found
        ) -> None:
            found.append((arguments[0], output))
            if len(found) == run.calls[group]:
                raise StopForward

        with run.targets.skipping(number), hooks() as hook:
            hook.after(original.get_submodule(group.consumer), collect)
            run_until_stopped(original, batch.inputs)
        for x, output in found:
            kept = x.index_select(group.axis, columns.to(x.device))
            given = output if outputs is None else output.index_select(group.axis, outputs.to(output.device))
            laid = output_rows(group.rows_first(given), group.axis, batch.size)
            chosen = choose_positions(consumer, batch.keys, laid.shape[1])
            y = take(laid, chosen)
            yield (
                input_rows(consumer, group.rows_first(kept), batch.size, chosen),
                y,
                batch.mask_for(y),
                held_out(batch),
            )
