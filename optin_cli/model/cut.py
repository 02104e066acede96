"""Prune models: remove units from the tensors of a model, in place or in a copy."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from optin_cli.model.lookup import attribute_at, tensor_at
from optin_cli.model.modeling_optin import apply_plan
from optin_cli.model.plan import Plan
from optin_cli.model.structure import Structure
from optin_cli.model.units import Keeping


@dataclass(frozen=True)
class PrunedModel:
    """A pruned model beside its original, whose structure this is (paths are the same).

    kept: the mask. Of a streamed model, whose blocks form a chain, arrive is told the path of the block that is changed
    next, when those before it change no more; and restore that of the block up to which an earlier run did so.
    """

    original: nn.Module
    model: nn.Module
    structure: Structure
    kept: Keeping
    arrive: Callable[[str], None] | None = None
    restore: Callable[[str], None] | None = None


def prune_copy(model: nn.Module, structure: Structure, kept: Keeping) -> PrunedModel:
    """Prune a copy of a model to the kept units."""
    small = copy.deepcopy(model)
    cut(small, structure, kept)
    return PrunedModel(model, small, structure, kept)


def cut(model: nn.Module, structure: Structure, kept: Keeping) -> Plan:
    """Prune a model in place to the kept units, and return the plan that gives a freshly built one the same shapes."""
    plan = Plan(root=structure.root)
    left: dict[str, torch.Tensor] = {}
    kept = structure.within_blocks(kept)
    for kind in structure.kinds:
        part, tensors = kind.cut(model, kept, structure.root)
        plan, left = plan.then(part), {**left, **tensors}
    apply_plan(model, plan.model_dump())
    with torch.no_grad():
        for path, tensor in left.items():
            tensor_at(model, path).copy_(tensor)
    return plan


def added_biases(original: nn.Module, model: nn.Module, structure: Structure) -> Plan:
    """The plan that gives a freshly built model the biases that refit added to consumers."""
    shapes = {}
    for path in dict.fromkeys(f"{group.consumer}.bias" for group in structure.groups):
        if attribute_at(original, path) is None and isinstance(bias := attribute_at(model, path), torch.Tensor):
            shapes[path] = list(bias.shape)
    return Plan(root=structure.root, parameters=shapes)
