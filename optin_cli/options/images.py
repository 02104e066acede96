"""The constants of scoring, refit, evaluation and sweeps, with their defaults. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass

from optin_cli.errors import UsageError


@dataclass(frozen=True)
class ImageOptions:
    """Constants of reading images.

    max_unreadable: share of images (0 to 1) that may be skipped since they do not decode; more is an error.
    max_ratio: most times that an image may be as long as it is wide, or as wide as long: preprocessing scales the
    shorter side up to the model's size, so that a strip of pixels would fill the memory.
    workers: threads that decode; None for as many as the process has processors. prefetch: batches that are decoded
    ahead of the model.
    """

    max_unreadable: float = 0.05
    max_ratio: float = 200.0
    workers: int | None = None
    prefetch: int = 2

    def __post_init__(self) -> None:
        if not 0 <= self.max_unreadable < 1:
            raise UsageError(
                f"max_unreadable is {self.max_unreadable}; expected a share from 0 up to, but below, 1.",
                hint="Pass --max-unreadable 0.05 for five in a hundred.",
            )
        if self.max_ratio < 1 or self.prefetch < 1 or (self.workers is not None and self.workers < 1):
            raise UsageError(
                f"max_ratio is {self.max_ratio}, workers {self.workers} and prefetch {self.prefetch}; "
                "expected 1 or more of each."
            )
