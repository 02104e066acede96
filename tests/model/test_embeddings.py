"""Sentence embeddings: every pooler against sums written out token by token, padding and prompts left out."""

import math

import pytest
import torch
from torch import nn

from optin_cli.model.embeddings import POOLERS, Embedding, Projection, UnitLength

HIDDEN = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(0))
REAL = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1]]).bool()
"""Without padding, padded on the right, and on the left."""

BY_HAND = {
    "cls": lambda rows, _: rows[0],
    "max": lambda rows, _: torch.stack(rows).max(dim=0).values,
    "mean": lambda rows, _: sum(rows) / len(rows),
    "mean_sqrt_len_tokens": lambda rows, _: sum(rows) / math.sqrt(len(rows)),
    "weightedmean": lambda rows, first: (
        sum(row * n for n, row in enumerate(rows, first)) / sum(range(first, first + len(rows)))
    ),
    "lasttoken": lambda rows, _: rows[-1],
}
"""Of the rows that count; the second argument is the position of the first of them, from 1."""


def test_every_pooler_is_tried():
    assert BY_HAND.keys() == POOLERS.keys()


@pytest.mark.parametrize("prompt", [0, 2])
@pytest.mark.parametrize("mode", BY_HAND)
def test_poolers(mode, prompt):
    found = Embedding((mode,), counts_prompt=False)(HIDDEN, REAL, prompt)
    for row, embedding in enumerate(found):
        rows = [*HIDDEN[row][REAL[row]]][prompt:]
        torch.testing.assert_close(embedding, BY_HAND[mode](rows, prompt + 1))


def test_a_prompt_counts_unless_the_settings_say_otherwise():
    torch.testing.assert_close(Embedding()(HIDDEN, REAL, 2), Embedding()(HIDDEN, REAL))


def test_several_poolers_stand_side_by_side_before_the_layers():
    projection = Projection(nn.Linear(8, 3), nn.Tanh())
    found = Embedding(("cls", "mean"), nn.Sequential(projection, UnitLength()))(HIDDEN, REAL)
    both = torch.cat([Embedding((mode,))(HIDDEN, REAL) for mode in ("cls", "mean")], dim=1)
    expected = torch.tanh(both @ projection.linear.weight.T + projection.linear.bias)
    torch.testing.assert_close(found, expected / expected.norm(dim=1, keepdim=True))


@pytest.mark.parametrize("width", [4, 2])
def test_a_residual_is_projected_where_widths_differ(width):
    module = Projection(nn.Linear(4, width), nn.ReLU(), residual=True)
    x = HIDDEN[:, 0]
    added = x if width == 4 else x @ module.residual.weight.T
    torch.testing.assert_close(module(x), torch.relu(module.linear(x)) + added)
