"""Options of the gate on a drop of a metric."""

from dataclasses import dataclass

from optin_cli.errors import UsageError
from optin_cli.options.common import CONFIDENCE, MEASURED
from optin_cli.options.declare import BUDGET, Checked, option, shared


@dataclass(frozen=True)
class GateOptions(Checked):
    """How much worse a metric may be than another model's, and how sure that must be (0.5: as measured)."""

    max_drop: float | None = option(
        None,
        "--max-drop",
        "Fail (exit 3) if the metric is worse than --against's by more than this (0.01 = one point; perplexity: a "
        "share).",
        metavar="DROP",
        panel=BUDGET,
    )
    confidence: float = shared(MEASURED, CONFIDENCE)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_limit(self.max_drop, self.confidence)


def require_limit(max_drop: float | None, confidence: float) -> None:
    """Refuse a confidence where no drop is limited (UsageError)."""
    if max_drop is None and confidence > MEASURED:
        raise UsageError("--confidence is of --max-drop, which was not given.", hint="Pass --max-drop 0.01.")
