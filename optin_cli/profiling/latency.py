"""Measure the time of each group's units on this device, on models that are really pruned.

Layers of the same shapes are pruned together and share the difference: with L of them and T(k) the time of the whole
model when all keep k units, a layer's k units take (T(k) - T(fewest)) / L. The whole model runs each time, so that
weights compete for the caches as they do in use. A block of a stack takes (T - T(half)) / H, where half of its blocks,
H of them, do not run.
"""

import copy
import importlib.metadata
from itertools import chain
from pathlib import Path

import torch
from torch import nn

from optin_cli.artifacts.costs import BLOCK
from optin_cli.artifacts.latency import Ladder, LatencyTable
from optin_cli.artifacts.mask import layout_class
from optin_cli.checkpoints.checkpoint import Checkpoint, as_checkpoint
from optin_cli.model.cut import cut
from optin_cli.model.depth import depth_of
from optin_cli.model.lookup import tensor_at
from optin_cli.model.structure import Structure
from optin_cli.model.units import Group, Keeping
from optin_cli.options.latency import LatencyOptions
from optin_cli.profiling.devices import describe_device
from optin_cli.profiling.timing import forward_latency
from optin_cli.progress import SILENT, Progress
from optin_cli.version import __version__


def profile_latency(
    checkpoint: Checkpoint | str | Path,
    *,
    seq_len: int | None = None,
    options: LatencyOptions | None = None,
    progress: Progress = SILENT,
) -> LatencyTable:
    """What the whole model and each group's units cost in time on the checkpoint's device, for `search`.

    The model is timed whole and with each kind of group pruned to a few sizes; the runs of all are interleaved.
    """
    checkpoint, options = as_checkpoint(checkpoint), options or LatencyOptions()
    workload = checkpoint.input.workload(checkpoint.input.length(seq_len), options.batch_size)
    model, structure = checkpoint.model, checkpoint.structure
    alike = alike_groups(model, structure)
    sizes = [ladder_sizes(groups[0], options.fractions) for groups in alike]
    models = [model]
    for groups, counts in zip(alike, sizes, strict=True):
        for count in counts[:-1]:
            progress.update(
                len(models), 1 + sum(len(c) - 1 for c in sizes), f"cutting {groups[0].name} and its like to {count}"
            )
            models.append(_cut_copy(checkpoint, {group.name: range(count) for group in groups}))
    depth = depth_of(structure.kinds)
    bypassed = [] if depth is None else [f"{name}.{BLOCK}" for name, _ in depth.blocks[::2]]
    if bypassed:
        models.append(_cut_copy(checkpoint, {name: [] for name in bypassed}))
    progress.update(0, 1, f"timing {len(models)} models, {options.runs} runs each")
    inputs = checkpoint.input.random(workload, seed=options.seed)
    times = forward_latency(models, [inputs] * len(models), workload, runs=options.runs, warmup=options.warmup)
    whole = times[0].median_ms
    ladders: dict[str, Ladder] = {}
    rest = iter(time.median_ms for time in times[1:])
    for groups, counts in zip(alike, sizes, strict=True):
        totals = [*(next(rest) for _ in counts[:-1]), whole]
        ladder = Ladder(units=counts, ms=[(total - totals[0]) / len(groups) for total in totals])
        ladders |= dict.fromkeys((group.name for group in groups), ladder)
    if depth is not None:
        ladder = Ladder(units=[0, 1], ms=[0.0, max(whole - next(rest), 0.0) / len(bypassed)])
        ladders |= dict.fromkeys(depth.units, ladder)
    return LatencyTable(
        optin_version=__version__,
        options=options.recorded(),
        inputs=checkpoint.sources,
        workload=workload,
        device=describe_device(checkpoint.device),
        threads=torch.get_num_threads(),
        total_ms=whole,
        groups={name: ladders[name] for name in structure.units if name in ladders},
        versions={
            "torch": torch.__version__,
            checkpoint.blueprint.library: importlib.metadata.version(checkpoint.blueprint.library),
        },
    )


def alike_groups(model: nn.Module, structure: Structure) -> list[list[Group]]:
    """Groups whose weights have the same shapes in the same places of their blocks."""
    found: dict[tuple[object, ...], list[Group]] = {}
    for group in structure.groups:
        shapes = tuple((piece.axis, tuple(tensor_at(model, piece.parameter).shape)) for piece in group.slices)
        key = (layout_class(group.name, group.block), group.units, group.unit_width, shapes)
        found.setdefault(key, []).append(group)
    return list(found.values())


def ladder_sizes(group: Group, fractions: tuple[float, ...]) -> list[int]:
    """Counts of kept units that are timed, ascending from the fewest to all.

    One unit is among them: the first costs more than the next, since without any the module does not run.
    """
    inner = [1, *(round(fraction * group.units) for fraction in fractions)]
    return sorted({group.least, *(n for n in inner if group.least < n < group.units), group.units})


def _cut_copy(checkpoint: Checkpoint, kept: Keeping) -> nn.Module:
    """A copy that is pruned to a mask; it shares all other weights with the model."""
    model = checkpoint.model
    shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    small = copy.deepcopy(model, shared)
    cut(small, checkpoint.structure, kept)
    return small
