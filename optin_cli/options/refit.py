"""The constants of scoring, refit, evaluation and sweeps, with their defaults. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass

from optin_cli.errors import UsageError

MIN_REFIT_SAMPLES = 8
"""One sample in four is held out to judge a refit, so fewer than this say nothing."""


@dataclass(frozen=True)
class RefitOptions:
    """Every constant of a refit.

    ridge: relative to the mean diagonal of X^T X; None chooses by held-out error. add_bias: give layers without
    bias one.
    """

    samples: int = 512
    ridge: float | None = None
    batch_size: int = 32
    max_length: int | None = None
    seed: int = 0
    add_bias: bool = False

    def __post_init__(self) -> None:
        if self.ridge is not None and self.ridge <= 0:
            raise UsageError(f"The ridge is {self.ridge}; expected a positive number.")
        if self.samples < MIN_REFIT_SAMPLES:
            raise UsageError(f"{self.samples} samples are too few to refit on; expected {MIN_REFIT_SAMPLES} or more.")
