"""Masks: run a model as if some of its units did not exist, without changing its weights.

Masking a slice multiplies its columns of the consumer's input by 0, which equals pruning it whatever the activation
before. Gates may differ per row of the batch and may require gradients.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from optin_cli.model.forward import Hooks, hooks
from optin_cli.model.structure import Structure
from optin_cli.model.units import Group, Keeping


def gate_units(x: torch.Tensor, gates: torch.Tensor, unit_width: int, axis: int = -1, rows: int = 0) -> torch.Tensor:
    """Scale each unit's columns.

    x: (rows, ..., units * unit_width), the consumer's input, or (rows * windows, ...) where it is in windows; `axis`
    holds the columns, `rows` the samples. gates: (units,) for all rows alike, or (rows, units).
    """
    if unit_width > 1:
        gates = gates.repeat_interleave(unit_width, dim=-1)
    if gates.dim() == 2 and x.shape[rows] != gates.shape[0]:
        gates = gates.repeat_interleave(x.shape[rows] // gates.shape[0], dim=0)
    shape = [1] * x.dim()
    shape[axis] = gates.shape[-1]
    if gates.dim() == 2:
        shape[rows] = gates.shape[0]
    return x * gates.reshape(shape).to(x.dtype)


@contextlib.contextmanager
def gated(model: nn.Module, groups: Mapping[Group, torch.Tensor]) -> Iterator[None]:
    """Scale the units of `groups` by their gates, on the way into the consumers."""
    with hooks() as hook:
        for gated_group, its_gates in groups.items():
            for norm in gated_group.norms:
                _gate_norm(hook, model.get_submodule(norm.path), its_gates, norm.unit_width)

            def scale(_: nn.Module, inputs: Any, group: Group = gated_group, gates: torch.Tensor = its_gates) -> Any:
                return (gate_units(inputs[0], gates, group.unit_width, group.axis, group.rows), *inputs[1:])

            hook.before(model.get_submodule(gated_group.gate), scale)
        yield


def _gate_norm(hook: Hooks, norm: nn.Module, gates: torch.Tensor, unit_width: int) -> None:
    """Take the root mean square of a norm's columns over the units that are left: mean over all times units / left."""

    def before(_module: nn.Module, inputs: Any) -> Any:
        return (gate_units(inputs[0], gates, unit_width), *inputs[1:])

    def after(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        left = gates.mean(dim=-1).sqrt()
        return output * (left.reshape(-1, *[1] * (output.dim() - 1)) if left.dim() else left)

    hook.before(norm, before)
    hook.after(norm, after)


@contextlib.contextmanager
def masked(model: nn.Module, structure: Structure, kept: Keeping) -> Iterator[None]:
    """Run the model as if only the kept units of every kind existed."""
    kept = structure.within_blocks(kept)
    with contextlib.ExitStack() as stack:
        for kind in structure.kinds:
            stack.enter_context(kind.masked(model, kept))
        yield
