"""Options of latency tables."""

from dataclasses import dataclass
from typing import ClassVar

from optin_cli.options.common import MOST_ROWS, MOST_RUNS
from optin_cli.options.declare import TIMING, Checked, option


@dataclass(frozen=True)
class LatencyOptions(Checked):
    """Options of a latency table.

    fractions: shares of a group's units (0 to 1) that are timed, beside the fewest it can have and one unit.
    seed: makes the random inputs.
    """

    panel: ClassVar[str] = TIMING
    batch_size: int = option(
        32,
        "--latency-batch",
        "Batch size that time is measured at, with --latency.",
        metavar="N",
        low=1,
        most=MOST_ROWS,
        recorded="",
        earlier=("--batch",),
    )
    runs: int = option(20, "--runs", "Timed runs of each size, with --latency.", metavar="N", low=1, most=MOST_RUNS)
    warmup: int = option(3, low=0)
    fractions: tuple[float, ...] = option((0.25, 0.5, 0.75), above=0, below=1)
    seed: int = option(0)
