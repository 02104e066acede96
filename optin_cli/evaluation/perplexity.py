"""Perplexity of running text: how many tokens a model wavers between, on average."""

import torch

from optin_cli.evaluation.resampling import MetricAt


def perplexity(losses: torch.Tensor, counts: torch.Tensor) -> tuple[float, float | None]:
    """exp of the mean loss a token, and its standard error over the choice of texts (None for a single one).

    With each token masked in its turn this is the pseudo-perplexity of Salazar et al. 2020 (arXiv 1910.14659, eq. 5).
    The error is that of a ratio of sums over texts, carried through the exponential to first order.

    Args:
        losses: summed -log p of the tokens of each text, (N,) float64. counts: number of those tokens, (N,); some is
            not 0.
    """
    seen = counts > 0
    losses, counts = losses[seen], counts[seen].double()
    mean, texts = losses.sum() / counts.sum(), len(losses)
    value = float(mean.exp())
    if texts < 2:
        return value, None
    spread = (losses - mean * counts).square().sum() * texts / (texts - 1)
    return value, value * float(spread.sqrt() / counts.sum())


def perplexity_at(losses: torch.Tensor, counts: torch.Tensor) -> MetricAt:
    """The perplexity of some of the texts, whose losses and tokens are as of `perplexity`; NaN without a token."""
    exact = counts.double()
    return lambda rows: float((losses[rows].sum() / exact[rows].sum()).exp())
