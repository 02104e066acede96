"""Options of shrinking in one go."""

from dataclasses import dataclass, replace

from optin_cli.errors import UsageError
from optin_cli.options.common import CONFIDENCE, KEEP_FLOPS, MAX_DROP, MEASURED
from optin_cli.options.declare import BUDGET, DATA, Checked, Option, nested, offer, option, shared
from optin_cli.options.evaluation import EvalOptions
from optin_cli.options.gate import require_limit
from optin_cli.options.refit import RIDGE, RefitOptions
from optin_cli.options.scoring import ScoreOptions
from optin_cli.options.search import SearchOptions

SCORING = offer("units", "samples", "batch_size", "max_length", "seed")
SEARCH = offer("round_to", "min_heads", "min_neurons", "protect", "layout")
EVALUATION = offer(
    "seq_len",
    "stride",
    "latency_batch",
    "latency_length",
    "latency_runs",
    "ignore_index",
    samples=Option("--eval-samples", "Evaluate on this many samples.", low=1, recorded="", panel=DATA, unset="all"),
)


@dataclass(frozen=True)
class ShrinkOptions(Checked):
    """How small the model becomes, and the options of the stages.

    keep_flops: share of the MACs to keep. max_drop: a gate on the task's metric if there is a share, else the drop
    up to which the smallest model is searched, by at most `evaluations` of them. confidence: of its being within that.
    """

    keep_flops: float | None = shared(None, KEEP_FLOPS)
    max_drop: float | None = shared(
        None,
        replace(
            MAX_DROP,
            help="Fail (exit 3) if the metric drops by more than this (0.01 = one point; perplexity: a share); without "
            "--keep-flops, find the smallest model that loses at most this much.",
        ),
    )
    confidence: float = shared(MEASURED, CONFIDENCE)
    evaluations: int = option(
        6,
        "--evaluations",
        "Try at most this many models for --max-drop without --keep-flops.",
        low=1,
        panel=BUDGET,
    )
    ridge: float | None = shared(None, replace(RIDGE, recorded="refit_ridge"))
    scoring: ScoreOptions = nested(ScoreOptions(), SCORING)
    search: SearchOptions = nested(SearchOptions(), SEARCH)
    evaluation: EvalOptions = nested(EvalOptions(), EVALUATION)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep_flops is None and self.max_drop is None:
            raise UsageError(
                "No budget was given.", hint="Pass --keep-flops 0.5, or --max-drop 0.01 with --task NAME, or both."
            )
        require_limit(self.max_drop, self.confidence)
        if self.keep_flops is None and (self.search != SearchOptions() or self.scoring.units != ScoreOptions.units):
            raise UsageError(
                "The search for the smallest model within --max-drop takes every unit and layout.",
                hint="Pass --keep-flops with --units, --layout, --protect and --round-to, or leave those out.",
            )

    @property
    def refit(self) -> RefitOptions:
        """Options of the refit, which sees the samples that are scored on."""
        how = self.scoring
        return RefitOptions(how.samples, self.ridge, how.batch_size, how.max_length, how.seed)
