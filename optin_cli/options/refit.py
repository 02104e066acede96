"""Options of the refit."""

from dataclasses import dataclass

from optin_cli.errors import UsageError
from optin_cli.options.common import BATCH_SIZE, MAX_LENGTH, SEED
from optin_cli.options.declare import DATA, RESEARCH, Checked, Option, option, shared

MIN_REFIT_SAMPLES = 8
"""One sample in four is held out to judge a refit, so fewer than this say nothing."""
RIDGE = Option(
    "--refit-ridge",
    "Ridge of the refit, relative to the mean square of a layer's inputs.",
    above=0,
    noun="The ridge",
    panel=RESEARCH,
    unset="by held-out error",
)


@dataclass(frozen=True)
class RefitOptions(Checked):
    """Options of a refit.

    ridge: relative to the mean diagonal of X^T X; None chooses by held-out error. add_bias: give layers without
    bias one.
    """

    samples: int = option(512, "--samples", "Samples to refit on.", panel=DATA)
    ridge: float | None = shared(None, RIDGE)
    batch_size: int = shared(32, BATCH_SIZE)
    max_length: int | None = shared(None, MAX_LENGTH)
    seed: int = shared(0, SEED)
    add_bias: bool = option(False, "--add-bias", "Add a bias to adjusted layers that lack one.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples < MIN_REFIT_SAMPLES:
            raise UsageError(f"{self.samples} samples are too few to refit on; expected {MIN_REFIT_SAMPLES} or more.")
