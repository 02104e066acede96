"""Perplexity against its definition, and its error against resampled texts."""

import math

import pytest
import torch

from optin_cli.evaluation.perplexity import perplexity


def test_perplexity_is_the_exponential_of_the_mean_over_tokens():
    losses, counts = torch.tensor([2.0, 6.0, 0.0], dtype=torch.float64), torch.tensor([1, 3, 0])
    assert perplexity(losses, counts) == (pytest.approx(math.exp(2.0)), pytest.approx(0.0, abs=1e-12))


def test_a_uniform_guess_among_classes_wavers_between_them():
    losses, counts = torch.tensor([5 * math.log(30)], dtype=torch.float64), torch.tensor([5])
    assert perplexity(losses, counts) == (pytest.approx(30.0), None)


def test_error_is_the_spread_over_resampled_texts():
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(1, 20, (200,), generator=generator)
    losses = counts * (3 + 0.5 * torch.randn(200, generator=generator, dtype=torch.float64))
    drawn = torch.randint(200, (2000, 200), generator=generator)
    values = torch.tensor([perplexity(losses[rows], counts[rows])[0] for rows in drawn])
    assert perplexity(losses, counts)[1] == pytest.approx(float(values.std()), rel=0.1)
