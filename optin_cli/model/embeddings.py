"""Sentence embeddings: what is made of the hidden states of a text's tokens.

Poolers take hidden states (rows, tokens, width), and masks (rows, tokens) of the tokens that count and of the real
ones, which differ where a prompt does not count. They return (rows, width).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import nn

Pooler = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def _first(hidden: torch.Tensor, counted: torch.Tensor, _real: torch.Tensor) -> torch.Tensor:
    return hidden[torch.arange(len(hidden), device=hidden.device), counted.int().argmax(dim=1)]


def _last(hidden: torch.Tensor, counted: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    return _first(hidden.flip(1), counted.flip(1), real)


def _largest(hidden: torch.Tensor, counted: torch.Tensor, _real: torch.Tensor) -> torch.Tensor:
    return hidden.masked_fill(~counted.unsqueeze(-1), -torch.inf).amax(dim=1)


def _weighted(hidden: torch.Tensor, weights: torch.Tensor, power: float = 1.0) -> torch.Tensor:
    """Sum of hidden states over the sum of their weights (rows, tokens), raised to `power`."""
    weights = weights.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1) ** power


def _mean(hidden: torch.Tensor, counted: torch.Tensor, _real: torch.Tensor) -> torch.Tensor:
    return _weighted(hidden, counted)


def _mean_by_root(hidden: torch.Tensor, counted: torch.Tensor, _real: torch.Tensor) -> torch.Tensor:
    return _weighted(hidden, counted, 0.5)


def _mean_by_position(hidden: torch.Tensor, counted: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    return _weighted(hidden, counted * real.cumsum(dim=1))


POOLERS: Mapping[str, Pooler] = MappingProxyType(
    {
        "cls": _first,
        "max": _largest,
        "mean": _mean,
        "mean_sqrt_len_tokens": _mean_by_root,
        "weightedmean": _mean_by_position,
        "lasttoken": _last,
    }
)
"""By the names that sentence-transformers give them, in the order in which it joins several."""


class UnitLength(nn.Module):
    """Scale embeddings to length 1."""

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """(rows, width) -> (rows, width)."""
        return F.normalize(embeddings, dim=-1)


class Projection(nn.Module):
    """A linear layer and an activation; with a residual, added to its input, or to what `residual` makes of that."""

    def __init__(self, linear: nn.Linear, activation: nn.Module, *, residual: bool = False) -> None:
        super().__init__()
        self.linear, self.activation, self.adds = linear, activation, residual
        if residual and linear.in_features != linear.out_features:
            self.residual = nn.Linear(linear.in_features, linear.out_features, bias=False)

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """(rows, in) -> (rows, out)."""
        found: torch.Tensor = self.activation(self.linear(embeddings))
        if not self.adds:
            return found
        return found + (self.residual(embeddings) if hasattr(self, "residual") else embeddings)


@dataclass(frozen=True)
class Embedding:
    """From hidden states to embeddings; the mean over real tokens unless a model says otherwise.

    pooling: names of `POOLERS`, whose results stand side by side. layers: what follows. counts_prompt: whether the
    tokens of a prompt count.
    """

    pooling: tuple[str, ...] = ("mean",)
    layers: nn.Sequential = field(default_factory=nn.Sequential)
    counts_prompt: bool = True

    def __call__(self, hidden: torch.Tensor, real: torch.Tensor, prompt: int = 0) -> torch.Tensor:
        """Hidden states (rows, tokens, width) to (rows, embedding).

        real: (rows, tokens) bool. prompt: how many real tokens each row begins with that are the prompt's.
        """
        counted = real if self.counts_prompt or not prompt else real & (real.cumsum(dim=1) > prompt)
        pooled = torch.cat([POOLERS[name](hidden, counted, real) for name in self.pooling], dim=-1)
        embedded: torch.Tensor = self.layers.to(hidden.device)(pooled)
        return embedded
