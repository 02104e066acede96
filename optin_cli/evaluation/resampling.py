"""Metrics over some of the samples, and standard errors by drawing samples again and again from a fixed seed."""

import math
import statistics
from collections.abc import Callable, Iterator

import torch

from optin_cli.evaluation.metrics import (
    RESAMPLES,
    SEED,
    TOPS,
    MapMetric,
    Metric,
    TagMetric,
    ValueMetric,
    find_metric,
    is_constant,
    metric_as,
    value_of,
)

MetricAt = Callable[[torch.Tensor], float]
"""A model's metric over some of the samples, whose numbers (M,) may repeat; NaN where it is not defined."""


def metric_at(name: str, predictions: torch.Tensor, labels: torch.Tensor, *, positive: int = 1) -> MetricAt:
    """A metric of predictions over some of the samples."""
    metric = metric_as(ValueMetric, name, "scores answers, not numbers")
    if (top := TOPS.get(name)) is not None:
        best = predictions.topk(min(top, predictions.shape[-1]), dim=-1).indices
        return mean_at((best == labels[:, None]).any(dim=-1))

    def at(rows: torch.Tensor) -> float:
        drawn = labels[rows.to(labels.device)]
        if metric.spread and is_constant(drawn):
            return math.nan
        return value_of(metric, predictions[rows.to(predictions.device)], drawn, positive)

    return at


def counted_at(name: str, counts: torch.Tensor) -> MetricAt:
    """A metric of label maps or tagged words over some of the samples, whose counts are (N, ...)."""
    metric, exact = find_metric(name), counts.double()
    assert isinstance(metric, (MapMetric, TagMetric))
    return lambda rows: float(metric.compute(exact[rows].sum(dim=0)))


def mean_at(scores: torch.Tensor) -> MetricAt:
    """A metric that is the mean of the scores of samples, (N,)."""
    exact = scores.double()
    return lambda rows: float(exact[rows].mean())


def standard_error(
    name: str, value: float, predictions: torch.Tensor, labels: torch.Tensor, *, positive: int = 1
) -> float | None:
    """Standard error of a metric over the choice of samples.

    Binomial for accuracy and top-5; else the spread over 200 bootstrap resamples drawn from a fixed seed. None where no
    two resamples have a defined value.
    """
    if name in TOPS:
        return math.sqrt(max(value * (1 - value), 0.0) / len(labels))
    at = metric_at(name, predictions, labels, positive=positive)
    return _spread(at(rows) for rows in _resamples(len(labels)))


def drop_error(mine: MetricAt, theirs: MetricAt, samples: int, metric: Metric) -> float | None:
    """Bootstrap standard error of how much worse `mine` is than `theirs`; None where too few resamples define it.

    Both are measured on the same resamples, so that what samples do to both alike does not count.
    """
    if samples < 2:
        return None
    return _spread(metric.drop(mine(rows), theirs(rows)) for rows in _resamples(samples))


def _resamples(samples: int) -> Iterator[torch.Tensor]:
    """Numbers of samples (samples,), drawn with replacement, resample by resample."""
    generator = torch.Generator().manual_seed(SEED)
    for _ in range(RESAMPLES):
        yield torch.randint(samples, (samples,), generator=generator)


def _spread(values: Iterator[float]) -> float | None:
    """Standard deviation of the values that are defined; None of fewer than two."""
    defined = [value for value in values if math.isfinite(value)]
    return statistics.stdev(defined) if len(defined) > 1 else None
