"""Two models and a consumer in; what it should put out for the second's residual stream to be the first's.

A consumer's output enters the residual sum by a scaled permutation: layer scale, batch norm, windows reversed and
shifted, padding cropped. No description says which; autograd does.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from optin_cli.data.batch import Batch
from optin_cli.errors import ArchitectureError
from optin_cli.model.cut import slice_indices
from optin_cli.model.forward import StopForward, hooks, run_until_stopped
from optin_cli.model.replay import Prefixes
from optin_cli.model.structure import Group, Structure
from optin_cli.model.tokens import averaged_as, merged_as
from optin_cli.refit.design_matrix import Consumer, choose_positions, input_rows, output_rows, take
from optin_cli.refit.original_stream import Targets, at_residual_sum

HOLDOUT = 4
"""One sample in so many is held out to judge a refit."""


def gather(
    model: nn.Module, group: Group, batch: Batch, calls: int
) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
    """Run a model up to where a consumer's output has joined the residual stream for the last of its `calls`.

    Returns:
        (inputs, outputs, sums), one tensor a call of the consumer (several where weights are shared), shaped as
        the model has them, with the graph that relates the sums to the outputs; without a residual stream the sums
        are the outputs. Sums are of the tokens that entered the block, before any merge behind it.
    """
    inputs: list[torch.Tensor] = []
    outputs: list[torch.Tensor] = []
    sums: list[torch.Tensor] = []
    entering: list[torch.Tensor] = []

    def on_consumer(_module: nn.Module, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        inputs.append(arguments[0].detach())
        torch.set_grad_enabled(True)  # until the sum; no_grad below restores what was
        outputs.append(output.detach().requires_grad_())
        return outputs[-1].clone()  # the next module may work in place

    def arrive(total: torch.Tensor) -> None:
        sums.append(merged_as(total, entering[0]) if entering else total)
        torch.set_grad_enabled(False)
        if calls == len(sums):
            raise StopForward

    def on_entry(_module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        entering[:] = arguments[:1]

    with hooks() as hook:
        hook.after(model.get_submodule(group.consumer), on_consumer)
        at_residual_sum(hook, model, group, arrive)
        hook.before(model.get_submodule(group.block_path), on_entry)
        run_until_stopped(model, batch.inputs)
    return inputs, outputs, sums


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
    """What a consumer should put out for the residual sum to become the target.

    `out` enters `total` by a scaled permutation M = P diag(s) (layer scale, batch norm, windows), which autograd
    tells: s = M^T 1, and the least change of `out` that does it is M^T (target - total) / s^2.

    Returns:
        (wanted output, scale s, target as `out` is laid out), each shaped as `out`; the scale is 0 where nothing
        of `out` arrives (padding of windows).
    """
    scale = pull_back(group, total, out, torch.ones_like(total))
    safe = torch.where(scale == 0, 1.0, scale)
    change = pull_back(group, total, out, target - total.detach()) / safe.square()
    return out.detach() + change, scale, pull_back(group, total, out, target) / safe


def consumer_calls(model: nn.Module, structure: Structure, batch: Batch) -> dict[Group, int]:
    """How often each consumer runs in a forward pass, in the order of their first runs."""
    counts: dict[Group, int] = {}
    with hooks() as hook:
        for group in structure.groups:

            def count(_module: nn.Module, _arguments: object, group: Group = group) -> None:
                counts[group] = counts.get(group, 0) + 1

            hook.before(model.get_submodule(group.consumer), count)
        run_until_stopped(model, batch.inputs)
    return counts


def held_out(batch: Batch) -> torch.Tensor:
    """Which samples of a batch judge the refit, by their keys and so independent of order: (rows,) bool."""
    digests = (hashlib.sha256(key.encode()).digest() for key in batch.keys)
    return torch.tensor([digest[0] % HOLDOUT == 0 for digest in digests], device=batch.device)


def kept_outputs(structure: Structure, group: Group, kept: Mapping[str, Sequence[int]]) -> torch.Tensor | None:
    """Which columns of a consumer's original output its cut one still has; None for all of them."""
    for other in structure.groups:
        for piece in other.slices:
            if piece.parameter == f"{group.consumer}.weight" and piece.axis == 0 and other.name in kept:
                return slice_indices(piece, other, list(kept[other.name]))
    return None


@dataclass(frozen=True)
class Known:
    """What is known while consumers are walked in execution order.

    targets: the original's residual sums of the block at hand. model: outputs of the cut model's earlier blocks.
    """

    targets: Targets
    model: Prefixes

    def advance(self, group: Group) -> None:
        """Neither model changes any more before the block of `group`."""
        self.targets.advance(group)
        self.model.advance(group)


@contextlib.contextmanager
def knowing(
    original: nn.Module, model: nn.Module, structure: Structure, batches: Sequence[Batch], calls: Mapping[Group, int]
) -> Iterator[Known]:
    """Keep what both models put out in temporary files.

    Args:
        calls: from `consumer_calls`.
    """
    known = Known(Targets(original, structure, batches, calls), Prefixes(model, structure, batches))
    with known.targets, known.model:
        yield known


@dataclass(frozen=True)
class Rows:
    """A consumer's rows over one call, at the chosen positions.

    x: (rows, positions, columns) that the weights multiply, None where they are not asked for. y: what they
    should give. found: what they give. target: the residual sum aimed at. scale: of each entry of y in that sum;
    all four (rows, positions, outputs). taken: (rows, positions), true where a position counts.
    """

    x: torch.Tensor | None
    y: torch.Tensor
    found: torch.Tensor
    target: torch.Tensor
    scale: torch.Tensor
    taken: torch.Tensor


def stream_rows(
    model: nn.Module,
    group: Group,
    batches: Sequence[Batch],
    calls: int,
    known: Known,
    outputs: torch.Tensor | None = None,
    *,
    inputs: bool = True,
) -> Iterator[tuple[Rows, torch.Tensor]]:
    """The rows that a consumer is judged by, call by call, with which samples are held out.

    Args:
        known: what the original puts out there, and what earlier blocks of the cut `model` put out.
        outputs: columns of the original's output that the cut consumer has, where there is no residual stream.
        inputs: whether x is wanted.
    """
    consumer = model.get_submodule(group.consumer)
    axis = 1 if group.axis == 1 else -1
    for number, batch in enumerate(batches):
        with known.model.skipping(number):
            xs, outs, sums = gather(model, group, batch, calls)
        for x, out, total, whole in zip(xs, outs, sums, known.targets.sums(number, group), strict=True):
            target = averaged_as(whole, total)
            aim = target if outputs is None else target.index_select(axis, outputs.to(target.device))
            laid = [output_rows(t, axis, batch.size) for t in (*wanted_output(group, out, total, aim), out.detach())]
            chosen = choose_positions(consumer, batch.keys, laid[0].shape[1])
            y, scale, goal, found = (take(t, chosen) for t in laid)
            rows = None
            if inputs and isinstance(consumer, Consumer):
                rows = input_rows(consumer, x, batch.size, chosen)
            taken = batch.mask_for(y) & (scale != 0).any(dim=-1)
            yield Rows(rows, y, found, goal, scale, taken), held_out(batch)
