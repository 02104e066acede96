"""A stock model and a cut plan in; the same model with the planned shapes out, ready for the cut weights.

This file is self-contained on purpose (torch only): `prune` ships its text beside the weights, so that a cut
checkpoint loads with plain transformers and `trust_remote_code=True`, without optin installed.
"""

from __future__ import annotations

import inspect
import types
from typing import Any

import torch
from torch import nn


def apply_plan(model: nn.Module, plan: dict[str, Any]) -> nn.Module:
    """Give `model` the shapes, attributes and emptied modules of a cut plan. Weights are left to be loaded.

    Args:
        model: a module whose base model lies at `plan["root"]`, or is that base model itself.
        plan: {"root": path, "parameters": {path: shape}, "attributes": {path: int},
            "select": [{"module", "argument", "axis", "index"}], "attend": [path],
            "empty": [{"module", "consumer", "norm", "remove", "returns"}]}.
    """
    root = plan["root"] + "." if plan["root"] else ""
    inside = not root or any(path.startswith(root) for path, _ in model.named_modules())

    def locate(path: str) -> tuple[Any, str]:
        owner, _, leaf = (path if inside else path.removeprefix(root)).rpartition(".")
        return model.get_submodule(owner), leaf

    for path, shape in plan["parameters"].items():
        owner, leaf = locate(path)
        _resize(owner, leaf, shape)
    for path, value in plan["attributes"].items():
        owner, leaf = locate(path)
        setattr(owner, leaf, value)
    for rule in plan["select"]:
        owner, leaf = locate(rule["module"])
        _select(getattr(owner, leaf), rule)
    for path in plan.get("attend", []):
        owner, leaf = locate(path)
        module = getattr(owner, leaf)
        module.forward = types.MethodType(_attend, module)
    for rule in plan["empty"]:
        owner, leaf = locate(rule["module"])
        _empty(getattr(owner, leaf), rule)
        for path in rule.get("remove", []):
            owner, leaf = locate(path)
            setattr(owner, leaf, None)
    return model


def _resize(owner: nn.Module, leaf: str, shape: list[int]) -> None:
    """Give a parameter or buffer its new shape, and its module the sizes that follow from it.

    A buffer keeps its first entries: those that are not stored, and so not loaded, are alike for all units. A bias
    that the module lacks is given to it.
    """
    old = getattr(owner, leaf)
    if old is None:
        old = owner.weight
    if leaf in owner._buffers:
        owner._buffers[leaf] = old[tuple(slice(length) for length in shape)].clone()
    else:
        new = torch.empty(shape, dtype=old.dtype, device=old.device)
        setattr(owner, leaf, nn.Parameter(new, requires_grad=old.requires_grad))
    if isinstance(owner, nn.Linear) and leaf == "weight":
        owner.out_features, owner.in_features = shape
    elif isinstance(owner, nn.Conv2d) and leaf == "weight":
        # A depthwise convolution has as many groups as channels; in any other, groups stay.
        owner.groups = owner.groups if owner.groups == 1 else owner.groups * shape[0] // owner.out_channels
        owner.out_channels, owner.in_channels = shape[0], shape[1] * owner.groups
    elif isinstance(owner, nn.BatchNorm2d) and leaf in ("weight", "running_mean"):
        owner.num_features = shape[0]


def _select(module: nn.Module, rule: dict[str, Any]) -> None:
    """Keep only the entries of one argument that belong to the units the module still has."""
    signature = inspect.signature(module.forward)

    def choose(_module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        bound = signature.bind(*args, **kwargs)
        value = bound.arguments.get(rule["argument"])
        if value is not None and value.shape[rule["axis"]] != 1:
            index = torch.tensor(rule["index"], device=value.device)
            bound.arguments[rule["argument"]] = value.index_select(rule["axis"], index)
        return bound.args, bound.kwargs

    module.register_forward_pre_hook(choose, with_kwargs=True)


def _attend(self: Any, x: torch.Tensor, shared_rel_pos_bias: torch.Tensor | None = None) -> torch.Tensor:
    """Self-attention of fused projections with any number of heads; x: (rows, tokens, width)."""
    bias = None if self.q_bias is None else torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
    projected = nn.functional.linear(x, self.qkv.weight, bias)
    q, k, v = projected.reshape(*x.shape[:2], 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    added = shared_rel_pos_bias
    if self.relative_position_bias_table is not None:
        own = self._get_rel_pos_bias()
        added = own if added is None else own + added
    out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=added)
    joined: torch.Tensor = self.proj_drop(self.proj(out.transpose(1, 2).flatten(2)))
    return joined


def _empty(module: Any, rule: dict[str, Any]) -> None:
    """Replace the forward of a module that has no unit left by what it then computes: its bias, or nothing."""

    def forward(self: Any, hidden_states: torch.Tensor, *_args: Any, **_kwargs: Any) -> Any:
        out = hidden_states.new_zeros((*hidden_states.shape[:-1], 0))
        if rule["consumer"]:
            out = getattr(self, rule["consumer"])(out)
        if rule["norm"]:
            out = getattr(self, rule["norm"])(hidden_states + out)
        return (out, *[None] * (rule["returns"] - 1)) if rule["returns"] else out

    module.forward = types.MethodType(forward, module)
