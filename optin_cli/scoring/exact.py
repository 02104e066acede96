"""Exact trajectory importance: remove each unit and run the model again.

Blocks before a unit's block do not change, so their recorded outputs are replayed; candidates are batched.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from optin_cli.data.batch import Batch
from optin_cli.model.forward import Trajectory, observe, per_token
from optin_cli.model.masking import gated
from optin_cli.model.replay import captured, replayed
from optin_cli.model.structure import Structure
from optin_cli.scoring.distances import manifold_distance, output_distance
from optin_cli.scoring.sketch import Objective


def repeat_rows(value: Any, times: int, axis: int = 0) -> Any:
    """Repeat every tensor of a nested output `times` along its axis of samples: (rows, ...) -> (times * rows, ...)."""
    if isinstance(value, torch.Tensor):
        return torch.cat([value] * times, dim=axis)
    if isinstance(value, (tuple, list)):
        return type(value)(repeat_rows(item, times, axis) for item in value)
    return value


def trajectory_distance(
    mine: Trajectory, reference: Trajectory, structure: Structure, batch: Batch, objective: Objective, first: int
) -> torch.Tensor:
    """Importance of what changed `mine`, per row: manifold distances of blocks from `first` on, plus outputs.

    `mine` holds the batch's rows once or several times over; the reference, of the batch itself, is repeated.
    """
    times = mine.features[0].shape[0] // reference.features[0].shape[0]
    batch = batch.repeated(times)
    total = torch.zeros(batch.size, device=batch.device)
    if objective.manifold:
        for z in range(first, len(mine.features)):
            theirs = repeat_rows(reference.features[z], times)
            distance = manifold_distance(mine.features[z], theirs, batch.mask_for(theirs))
            total += objective.manifold * distance
    if objective.output:
        for output, theirs, rule in zip(mine.outputs, reference.outputs, structure.outputs, strict=True):
            tokens = batch.mask_for(output) if per_token(output, rule) else None
            distance = output_distance(output, repeat_rows(theirs, times), rule.kind, objective.temperature, tokens)
            total += objective.output * rule.weight * distance
    return total


@torch.no_grad()
def exact_batch(
    model: nn.Module,
    structure: Structure,
    batch: Batch,
    objective: Objective,
    *,
    rows: int | None,
    units: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, torch.Tensor]:
    """Measure the importance of a structure's units by removing them.

    Args:
        rows: how many rows (candidates x samples) run at once, behind blocks whose outputs are reused. None gives the
            plain loop of one whole forward pass per unit, for comparison.
        units: units to remove, by group name; all of each group where None.

    Returns:
        (samples, units) float64 by group name, in the order of `units`.
    """
    with captured(model, structure) as calls:
        raw_reference = observe(model, structure, batch)
    order = [path for path, _ in calls]
    axes = {block.path: block.layout.index("B") for block in structure.blocks}
    result: dict[str, torch.Tensor] = {}
    for group in structure.groups:
        first = order.index(group.block_path)
        candidates = list(units[group.name]) if units is not None else list(range(group.units))
        step = 1 if rows is None else max(1, rows // batch.size)
        columns = []
        for start in range(0, len(candidates), step):
            chunk = candidates[start : start + step]
            gates = torch.ones(len(chunk), group.units, device=batch.device)
            gates[torch.arange(len(chunk)), torch.tensor(chunk)] = 0.0
            gates = gates.repeat_interleave(batch.size, dim=0)
            known = calls[: 0 if rows is None else first]
            prefix = [repeat_rows(output, len(chunk), axes[path]) for path, output in known]
            with replayed(model, structure, prefix), gated(model, {group: gates}):
                mine = observe(model, structure, batch.repeated(len(chunk)))
            distance = trajectory_distance(mine, raw_reference, structure, batch, objective, first)
            columns.append(distance.double().cpu().reshape(len(chunk), batch.size).T)
        result[group.name] = torch.cat(columns, dim=1)
    return result
