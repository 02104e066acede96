"""Prune models: remove units from the tensors of a model, in place or in a copy."""

import copy
from dataclasses import dataclass

import torch
from torch import nn

from optin_cli.model.lookup import tensor_at
from optin_cli.model.modeling_optin import apply_plan
from optin_cli.model.plan import Plan
from optin_cli.model.structure import Structure
from optin_cli.model.units import Keeping


@dataclass(frozen=True)
class PrunedModel:
    """A pruned model beside its original, whose structure this is (paths are the same); kept: the mask."""

    original: nn.Module
    model: nn.Module
    structure: Structure
    kept: Keeping


def prune_copy(model: nn.Module, structure: Structure, kept: Keeping) -> PrunedModel:
    """Prune a copy of a model to the kept units."""
    small = copy.deepcopy(model)
    cut(small, structure, kept)
    return PrunedModel(model, small, structure, kept)


def cut(model: nn.Module, structure: Structure, kept: Keeping) -> Plan:
    """Prune a model in place to the kept units of every kind.

    Returns:
        the plan that gives a freshly built model the same shapes.
    """
    plan = Plan(root=structure.root)
    left: dict[str, torch.Tensor] = {}
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
    for consumer in {group.consumer: None for group in structure.groups}:
        had, has = original.get_submodule(consumer), model.get_submodule(consumer)
        if getattr(had, "bias", None) is None and isinstance(bias := getattr(has, "bias", None), torch.Tensor):
            shapes[f"{consumer}.bias"] = list(bias.shape)
    return Plan(root=structure.root, parameters=shapes)
