"""A model, its structure and the kept units in; the model with its tensors really cut out.

Every parameter of a group follows one rule: axis length = parts x units x block; cutting keeps, in each
part, the columns of the kept units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from optin_cli.architectures.schema import EmptyRule, SelectRule
from optin_cli.model.lookup import tensor_at
from optin_cli.model.modeling_optin import apply_plan
from optin_cli.model.structure import Group, Slice, Structure


class Selection(SelectRule):
    """An argument's entries that stay along its axis."""

    index: list[int]


class Merge(BaseModel):
    """How many tokens merge behind each block; see `runtime.merge_between`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    blocks: list[str]
    counts: list[int]
    special: int
    argument: str


class Plan(BaseModel):
    """What makes a stock model compute as cut: new shapes, attributes and emptied modules by full path, and merging."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    root: str
    parameters: dict[str, list[int]] = {}
    attributes: dict[str, int] = {}
    select: list[Selection] = []
    attend: list[str] = []
    empty: list[EmptyRule] = []
    merge: Merge | None = None

    def then(self, later: Plan) -> Plan:
        """The plan of cutting by this one and then by `later`."""
        return Plan(
            root=self.root,
            parameters={**self.parameters, **later.parameters},
            attributes={**self.attributes, **later.attributes},
            select=[*self.select, *later.select],
            attend=[*self.attend, *(path for path in later.attend if path not in self.attend)],
            empty=[*self.empty, *later.empty],
            merge=later.merge or self.merge,
        )


def merging_under(structure: Structure, kept: Mapping[str, Sequence[int]]) -> Merge | None:
    """How tokens merge under a mask; None if none do."""
    tokens = structure.tokens
    if tokens is None or not any(counts := tokens.counts(kept)):
        return None
    paths = [path for _, path in tokens.blocks]
    return Merge(blocks=paths, counts=counts, special=tokens.special, argument=tokens.argument)


def slice_indices(piece: Slice, group: Group, kept: list[int]) -> torch.Tensor:
    """Positions along `piece.axis` that stay, given the kept units: (parts * len(kept) * block,)."""
    grid = torch.arange(piece.parts * group.units * piece.block).reshape(piece.parts, group.units, piece.block)
    return grid[:, kept, :].flatten()


def cut(model: nn.Module, structure: Structure, kept: Mapping[str, list[int]], root: str = "") -> Plan:
    """Cut a model in place.

    Args:
        model: the model the structure was found in.
        structure: its groups.
        kept: kept unit indices by group name, ascending; groups not named stay whole. Of tokens their number counts.
        root: path of the base model, recorded in the plan.

    Returns:
        the plan that gives a freshly built model the same shapes.
    """
    plan = Plan(root=root, merge=merging_under(structure, kept))
    tensors: dict[str, torch.Tensor] = {}
    for group in structure.groups:
        if group.name not in kept or len(kept[group.name]) == group.units:
            continue
        units = kept[group.name]
        removed = tuple(f"{path}." for path in group.empty.remove) if group.empty and not units else ()
        pieces = [piece for piece in group.slices if not piece.parameter.startswith(removed)]
        for piece in pieces:
            tensor = tensors.get(piece.parameter, tensor_at(model, piece.parameter))
            index = slice_indices(piece, group, units).to(tensor.device)
            tensors[piece.parameter] = tensor.detach().index_select(piece.axis, index)
        plan = plan.then(
            Plan(
                root=root,
                parameters={p.parameter: list(tensors[p.parameter].shape) for p in pieces},
                attributes={
                    **dict.fromkeys(group.set_units, len(units)),
                    **dict.fromkeys(group.set_width, len(units) * group.block),
                },
                select=[Selection(**s.model_dump(), index=units) for s in group.select if units],
                attend=[group.attend] if group.attend and units else [],
                empty=[group.empty] if group.empty and not units else [],
            )
        )
    apply_plan(model, plan.model_dump())
    with torch.no_grad():
        for path, tensor in tensors.items():
            tensor_at(model, path).copy_(tensor)
    return plan


def added_biases(original: nn.Module, model: nn.Module, structure: Structure, root: str) -> Plan:
    """The plan that gives a stock model the biases that refit added to consumers."""
    shapes = {}
    for consumer in {group.consumer: None for group in structure.groups}:
        had, has = original.get_submodule(consumer), model.get_submodule(consumer)
        if getattr(had, "bias", None) is None and isinstance(bias := getattr(has, "bias", None), torch.Tensor):
            shapes[f"{consumer}.bias"] = list(bias.shape)
    return Plan(root=root, parameters=shapes)
