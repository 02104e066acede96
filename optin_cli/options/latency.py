"""The constants of scoring, refit, evaluation and sweeps, with their defaults. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass

from optin_cli.errors import UsageError


@dataclass(frozen=True)
class LatencyOptions:
    """Every constant of a latency table.

    fractions: shares of a group's units (0 to 1) that are timed, beside the fewest it can have and one unit.
    seed: of the inputs.
    """

    batch_size: int = 32
    runs: int = 20
    warmup: int = 3
    fractions: tuple[float, ...] = (0.25, 0.5, 0.75)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.runs < 1 or self.warmup < 0:
            raise UsageError(
                f"batch_size is {self.batch_size}, runs {self.runs} and warmup {self.warmup}; "
                "expected at least 1, 1 and 0.",
                hint="Pass --batch 32 --runs 20.",
            )
        if not all(0 < fraction < 1 for fraction in self.fractions):
            raise UsageError(f"fractions are {self.fractions}; expected shares between 0 and 1.")
