"""Standard error of the difference of two models on the same samples, by resampling them for both at once."""

import math
import statistics

import torch

from optin_cli.evaluation.metrics import RESAMPLES, SEED, Metric, MetricAt


def drop_error(mine: MetricAt, theirs: MetricAt, samples: int, metric: Metric) -> float | None:
    """Bootstrap standard error of how much worse `mine` is than `theirs`; None where too few resamples define it.

    Both are measured on the same resamples, so that what samples do to both alike does not count.
    """
    if samples < 2:
        return None
    generator = torch.Generator().manual_seed(SEED)
    drops = []
    for _ in range(RESAMPLES):
        rows = torch.randint(samples, (samples,), generator=generator)
        drop = metric.drop(mine(rows), theirs(rows))
        if math.isfinite(drop):
            drops.append(drop)
    return statistics.stdev(drops) if len(drops) > 1 else None
