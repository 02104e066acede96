"""Mixtures of experts: routers and experts whose units can be masked, watched and sliced.

Whole experts and the neurons inside them pass through no module of their own in the library's layout, which holds the
weights of all experts of a block in one tensor. Here both get a forward that computes the same and passes them through
a child, `units`: of a router the probabilities of all experts, of experts the activations of their neurons.

A router without some experts is the softmax over those that are left. That is the softmax over all, in which those that
left have probability 0, divided by its sum; so masking equals pruning for experts too, and other experts are chosen.

One tensor for all experts means that each loses as many neurons as any other. Neuron u is therefore that of each
expert whose weights are the u-th largest (product of the norms of its rows and column), and neurons are put into that
order, which changes nothing that the experts compute. Torch multiplies groups of rows by matrices whose rows are a
multiple of 16 bytes; descriptions therefore make eight neurons a unit.
"""

import types
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

UNITS = "units"
"""Name of the child through which units pass."""


def open_router(router: Any) -> None:
    """Let the probabilities of experts pass through a child of their router."""
    setattr(router, UNITS, nn.Identity())
    router.forward = types.MethodType(_route, router)


def open_experts(experts: Any) -> None:
    """Let the activations of neurons pass through a child of the experts, each expert's in order of their weights."""
    with torch.no_grad():
        order = neuron_sizes(experts.gate_up_proj, experts.down_proj).argsort(dim=1, descending=True, stable=True)
        rows = torch.cat([order, order + order.shape[1]], dim=1)
        experts.gate_up_proj.copy_(experts.gate_up_proj.gather(1, rows[:, :, None].expand_as(experts.gate_up_proj)))
        experts.down_proj.copy_(experts.down_proj.gather(2, order[:, None].expand_as(experts.down_proj)))
    setattr(experts, UNITS, nn.Identity())
    experts.forward = types.MethodType(_apply_experts, experts)


OPENED = {"router": open_router, "experts": open_experts}
"""By what a description calls such a module."""


def neuron_sizes(gate_up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """Product of the norms of each neuron's two rows and its column: (experts, neurons).

    Args:
        gate_up: (experts, 2 x neurons, width). down: (experts, width, neurons).
    """
    gate, up = gate_up.float().norm(dim=2).chunk(2, dim=1)
    sizes: torch.Tensor = gate * up * down.float().norm(dim=1)
    return sizes


def _route(self: Any, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits (tokens, experts), and weights and indices of the chosen experts (tokens, chosen)."""
    logits = F.linear(hidden_states.reshape(-1, hidden_states.shape[-1]), self.weight)
    left = self.units(logits.float().softmax(dim=-1))
    weights, chosen = (left / left.sum(dim=-1, keepdim=True)).topk(self.top_k, dim=-1)
    if getattr(self, "norm_topk_prob", True):  # routers without that attribute always do
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return logits, weights.to(logits.dtype), chosen


def _apply_experts(self: Any, hidden_states: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted sum of what the chosen experts put out; hidden_states: (tokens, width), chosen: (tokens, experts)."""
    tokens, each = chosen.shape
    order = chosen.flatten().argsort(stable=True)
    back = order.argsort()
    counts = chosen.flatten().bincount(minlength=len(self.down_proj)).tolist()

    def project(sorted_rows: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
        """Rows for pairs of token and expert (pairs, columns), each by its expert's matrix; given in that order."""
        parts = torch.split(sorted_rows, counts)
        return torch.cat([F.linear(part, matrix) for part, matrix in zip(parts, matrices, strict=True)])[back]

    gate, up = project(hidden_states[order // each], self.gate_up_proj).chunk(2, dim=-1)
    found = project(self.units(self.act_fn(gate) * up)[order], self.down_proj) * weights.reshape(-1, 1)
    return found.reshape(tokens, each, -1).sum(dim=1).to(hidden_states.dtype)
