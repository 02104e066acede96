"""A model, groups and per-unit gates in; a context in which each consumer's input is scaled by its gates.

Masking a unit multiplies its columns of the consumer's input by 0, which equals cutting it whatever the
activation before. Gates may differ per row of the batch and may require gradients.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import nn

from optin_cli.model.cut import merging_under
from optin_cli.model.forward import hooks
from optin_cli.model.modeling_optin import merge_between
from optin_cli.model.structure import Group, Structure

Hook = Callable[[nn.Module, tuple[torch.Tensor, ...]], tuple[torch.Tensor, ...]]


def gate_units(x: torch.Tensor, gates: torch.Tensor, block: int, axis: int = -1) -> torch.Tensor:
    """Scale each unit's columns.

    Args:
        x: (rows, ..., units * block), the consumer's input, or (rows * windows, ...) where it is cut into windows.
        gates: (units,) for all rows alike, or (rows, units).
        block: columns a unit.
        axis: of x that holds the units' columns.
    """
    if block > 1:
        gates = gates.repeat_interleave(block, dim=-1)
    if gates.dim() == 2 and x.shape[0] != gates.shape[0]:
        gates = gates.repeat_interleave(x.shape[0] // gates.shape[0], dim=0)
    shape = [1] * x.dim()
    shape[axis] = gates.shape[-1]
    if gates.dim() == 2:
        shape[0] = gates.shape[0]
    return x * gates.reshape(shape)


def _hook(group: Group, gates: torch.Tensor) -> Hook:
    def scale(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (gate_units(inputs[0], gates, group.block, group.axis), *inputs[1:])

    return scale


@contextlib.contextmanager
def gated(model: nn.Module, groups: Mapping[Group, torch.Tensor]) -> Iterator[None]:
    """Scale the units of `groups` by their gates, on the way into the consumers; the hooks are always removed."""
    with hooks() as hook:
        for group, gates in groups.items():
            hook.before(model.get_submodule(group.gate), _hook(group, gates))
        yield


@contextlib.contextmanager
def masked(model: nn.Module, structure: Structure, kept: Mapping[str, Sequence[int]]) -> Iterator[None]:
    """Run the model as if only the `kept` units (by group name) existed, and tokens merged as that says."""
    parameter = next(model.parameters())
    gates = {}
    for group in structure.groups:
        if group.name in kept:
            gate = torch.zeros(group.units, device=parameter.device, dtype=parameter.dtype)
            gate[list(kept[group.name])] = 1.0
            gates[group] = gate
    merge = merging_under(structure, kept)
    with hooks() as hook, gated(model, gates):
        if merge is not None:
            blocks = [model.get_submodule(path) for path in merge.blocks]
            for handle in merge_between(blocks, merge.counts, merge.special, merge.argument):
                hook.callback(handle.remove)
        yield
