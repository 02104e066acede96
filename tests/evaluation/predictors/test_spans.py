"""The best span of start and end logits, against trying all."""

import math

import pytest
import torch

from optin_cli.evaluation.predictors.answers import best_spans


@pytest.mark.parametrize(
    ("start", "end", "allowed", "longest", "expected"),
    [
        ([0, 5, 0, 0], [0, 0, 5, 0], [1, 1, 1, 1], 30, (10, 1, 2)),
        ([0, 5, 0, 0], [0, 9, 5, 0], [0, 1, 1, 1], 30, (14, 1, 1)),
        ([0, 0, 0, 9], [9, 0, 0, 0], [1, 1, 1, 1], 30, (9, 0, 0)),
        ([9, 1, 0, 0], [9, 0, 1, 0], [0, 1, 1, 1], 30, (2, 1, 2)),
        ([9, 0, 0, 1], [0, 0, 0, 9], [1, 1, 1, 1], 3, (10, 3, 3)),
        ([9, 0, 0, 1], [0, 0, 0, 9], [1, 1, 1, 1], 4, (18, 0, 3)),
        ([1, 2, 3, 4], [1, 2, 3, 4], [0, 0, 0, 0], 30, (-math.inf, 0, 0)),
    ],
)
def test_best_spans_by_hand(start, end, allowed, longest, expected):
    rows = [torch.tensor([start]).float(), torch.tensor([end]).float(), torch.tensor([allowed]).bool()]
    best, first, last = (float(found) for found in best_spans(*rows, longest))
    assert best == expected[0]
    assert math.isinf(best) or (first, last) == expected[1:]


def test_the_best_span_is_the_best_of_all():
    generator = torch.Generator().manual_seed(0)
    start, end = (torch.randn(5, 9, generator=generator) for _ in range(2))
    allowed = torch.rand(5, 9, generator=generator) < 0.7
    found = [values.tolist() for values in best_spans(start, end, allowed, 4)]
    for row in range(5):
        spans = [(i, j) for i in range(9) for j in range(i, min(i + 4, 9)) if allowed[row, i] and allowed[row, j]]
        first, last = max(spans, key=lambda s: float(start[row, s[0]] + end[row, s[1]]))
        assert (found[1][row], found[2][row]) == (first, last)
