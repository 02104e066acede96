"""The constants of scoring and evaluation runs, with their defaults. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from optin_cli.errors import UsageError, did_you_mean

MIN_REFIT_SAMPLES = 8
"""One sample in four is held out to judge a refit, so fewer than this say nothing."""

Estimator = Literal["sketch", "exact", "hybrid"]


@dataclass(frozen=True)
class ScoreOptions:
    """Every constant of a scoring run.

    criterion: a key of CRITERIA. estimator: "sketch" for all units, "exact" for all, or "hybrid": exact for
    the kinds in `exact_kinds`, sketch for the others. output_weight is lambda, temperature is tau.
    samples, exact_samples: how many calibration samples each estimator sees. probes: backward passes a sample.
    rows: candidates x samples that an exact forward pass runs at once.
    """

    criterion: str = "trajectory"
    estimator: str = "sketch"
    output_weight: float = 0.1
    temperature: float = 4.0
    probes: int = 4
    samples: int = 512
    exact_samples: int = 128
    exact_kinds: tuple[str, ...] = ("head",)
    batch_size: int = 32
    rows: int = 256
    max_length: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        positive = ("temperature", "probes", "samples", "exact_samples", "batch_size", "rows", "max_length")
        for name in positive:
            if getattr(self, name) <= 0:
                raise UsageError(f"{name} is {getattr(self, name)}; expected a positive number.")
        if self.estimator not in get_args(Estimator):
            raise UsageError(
                f"Unknown estimator {self.estimator!r}.",
                hint=did_you_mean(self.estimator, get_args(Estimator)),
            )
        if self.output_weight < 0:
            raise UsageError(f"output_weight is {self.output_weight}; expected 0 or more.")
        if self.criterion not in CRITERIA:
            raise UsageError(f"Unknown criterion {self.criterion!r}.", hint=did_you_mean(self.criterion, CRITERIA))


@dataclass(frozen=True)
class Criterion:
    """How units are judged.

    terms: (manifold, output) switches of the trajectory objective, or None for a baseline.
    """

    terms: tuple[float, float] | None = None
    needs_data: bool = True
    needs_labels: bool = False


CRITERIA: Mapping[str, Criterion] = {
    "trajectory": Criterion(terms=(1.0, 1.0)),
    "manifold": Criterion(terms=(1.0, 0.0)),
    "output": Criterion(terms=(0.0, 1.0)),
    "fisher": Criterion(needs_labels=True),
    "magnitude": Criterion(needs_data=False),
    "random": Criterion(needs_data=False),
}


@dataclass(frozen=True)
class RefitOptions:
    """Every constant of a refit. ridge: relative to the mean diagonal of X^T X; None chooses by held-out error."""

    samples: int = 512
    ridge: float | None = None
    batch_size: int = 32
    max_length: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.ridge is not None and self.ridge <= 0:
            raise UsageError(f"The ridge is {self.ridge}; expected a positive number.")
        if self.samples < MIN_REFIT_SAMPLES:
            raise UsageError(f"{self.samples} samples are too few to refit on; expected {MIN_REFIT_SAMPLES} or more.")


@dataclass(frozen=True)
class EvalOptions:
    """Every constant of an evaluation. latency_runs = 0 measures no latency."""

    batch_size: int = 32
    max_length: int | None = None
    seq_len: int = 128
    latency_batch: int = 32
    latency_length: int = 64
    latency_runs: int = 20
    latency_warmup: int = 3
