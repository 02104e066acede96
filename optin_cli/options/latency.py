"""Options of latency tables."""

from dataclasses import dataclass

from optin_cli.options.common import MOST_ROWS, MOST_RUNS
from optin_cli.options.declare import Checked, option


@dataclass(frozen=True)
class LatencyOptions(Checked):
    """Options of a latency table.

    fractions: shares of a group's units (0 to 1) that are timed, beside the fewest it can have and one unit.
    seed: makes the random inputs.
    """

    batch_size: int = option(
        32, "--batch", "Samples at once, with --latency.", metavar="N", low=1, most=MOST_ROWS, recorded=""
    )
    runs: int = option(20, "--runs", "Timed runs of each size.", metavar="N", low=1, most=MOST_RUNS)
    warmup: int = option(3, low=0)
    fractions: tuple[float, ...] = option((0.25, 0.5, 0.75), above=0, below=1)
    seed: int = option(0)
