"""Standard error of the difference of two models on the same samples, by resampling them for both at once."""

import numpy as np
import torch
from numpy.typing import NDArray

from optin_cli.evaluation.metrics import RESAMPLES, SEED, Metric, MetricAt


def drop_error(mine: MetricAt, theirs: MetricAt, samples: int, metric: Metric) -> float | None:
    """Bootstrap standard error of how much worse `mine` is than `theirs`; None where too few resamples define it.

    Both are measured on the same resamples, so that what samples do to both alike does not count.
    """
    from scipy.stats import bootstrap

    if samples < 2:
        return None

    def drop(numbers: NDArray[np.int64]) -> float:
        rows = torch.from_numpy(numbers)
        return metric.drop(mine(rows), theirs(rows))

    found = bootstrap(
        (np.arange(samples),),
        drop,
        n_resamples=RESAMPLES,
        vectorized=False,
        method="percentile",
        random_state=SEED,
    )
    drops = found.bootstrap_distribution[np.isfinite(found.bootstrap_distribution)]
    return float(drops.std(ddof=1)) if len(drops) > 1 else None
