"""Options of sweeps, and the names of the recipes."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from optin_cli.errors import UsageError
from optin_cli.options.common import CONFIDENCE, KEEP_FLOPS, MAX_DROP, MEASURED
from optin_cli.options.declare import BUDGET, DATA, OUTPUT, Checked, Option, nested, offer, option, shared
from optin_cli.options.evaluation import EvalOptions
from optin_cli.options.gate import require_limit
from optin_cli.options.refit import RIDGE
from optin_cli.options.scoring import ScoreOptions

RECIPES: Mapping[str, str] = MappingProxyType(
    {
        "optin": "this project: loss of re-solved layers, exact search, refit",
        "sketch": "this project, units scored one by one, with refit",
        "no-refit": "this project, units scored one by one, no refit",
        "slimgpt": "SlimGPT (arXiv 2412.18110): error of re-solved layers, exact search, refit",
        "magnitude": "squared weights, no refit",
        "wanda": "Wanda (arXiv 2306.11695) summed over units, no refit",
        "fisher": "diagonal Fisher, no refit; needs labels",
        "random": "random units, with refit",
        "optin-paper": "OPTIN as published (arXiv 2403.17921)",
        "flap": "FLAP (arXiv 2312.11983): fluctuations, means kept in biases",
        "kwon": "Kwon et al. 2022 (arXiv 2204.09656); needs labels",
        "kprune": "K-prune, Park et al. 2024 (arXiv 2308.03449)",
    }
)
"""What each recipe is, by name, known without importing it."""
SCORING = offer("samples", "batch_size", "max_length", "seed")
EVALUATION = offer(
    "batch_size",
    "max_length",
    "seq_len",
    "stride",
    "latency_batch",
    "latency_length",
    "latency_runs",
    "seed",
    "mask_every",
    "ignore_index",
    samples=Option("--eval-samples", "Evaluate on this many samples.", low=1, recorded="", panel=DATA, unset="all"),
    prefix="eval_",
)


@dataclass(frozen=True)
class SweepOptions(Checked):
    """Which points a sweep measures: every recipe at every share of the MACs, or one recipe up to an allowed drop.

    confidence: of the drop's being within `max_drop`. evaluations: most models that are tried for it. keep_models:
    write every model, not its mask alone. ridge: for recipes that refit; None chooses by held-out error. scoring: of
    the recipes that score; its samples and seed choose the calibration set. evaluation: of every model; its samples and
    seed choose what it is evaluated on.
    """

    recipes: tuple[str, ...] = option(
        ("optin",),
        "--recipe",
        "Ways of pruning to compare: optin, no-refit, magnitude, fisher, … (optin recipes lists them).",
        metavar="NAME[,…]",
        choices=RECIPES,
        noun="recipe",
    )
    keep_flops: tuple[float, ...] | None = shared(
        None,
        replace(KEEP_FLOPS, help="Shares of the model's compute (MACs) to keep: 0.7,0.6,0.5,0.4.", metavar="SHARE[,…]"),
    )
    max_drop: float | None = shared(
        None,
        replace(
            MAX_DROP,
            help="Find and save the smallest model that loses at most this much (0.01 = one point; of perplexity, a "
            "share).",
        ),
    )
    confidence: float = shared(MEASURED, CONFIDENCE)
    evaluations: int = option(6, "--evaluations", "Try at most this many models for --max-drop.", low=1, panel=BUDGET)
    keep_models: bool = option(
        False, "--keep-models", "Also write the model of every point, into models/.", panel=OUTPUT
    )
    ridge: float | None = shared(None, replace(RIDGE, recorded="refit_ridge"))
    scoring: ScoreOptions = nested(ScoreOptions(), SCORING)
    evaluation: EvalOptions = nested(EvalOptions(), EVALUATION)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.keep_flops is None) == (self.max_drop is None):
            both = "Both --keep-flops and --max-drop were given; expected one of them."
            what = "No budget was given." if self.keep_flops is None else both
            raise UsageError(what, hint="Pass --keep-flops 0.6,0.5,0.4 or --max-drop 0.01.")
        require_limit(self.max_drop, self.confidence)
        for listed, what in ((self.recipes, "recipe"), (self.keep_flops or (), "budget")):
            twice = [item for number, item in enumerate(listed) if item in listed[:number]]
            if twice:
                raise UsageError(f"The {what} {twice[0]} is listed twice.")
        if not self.recipes or self.keep_flops == ():
            raise UsageError(f"No {'recipe' if self.keep_flops else 'budget'} was given.")
        if self.max_drop is not None and len(self.recipes) > 1:
            raise UsageError(
                f"--max-drop searches with one recipe; {len(self.recipes)} were given.",
                hint="Compare recipes with --keep-flops first, then search with the best.",
            )

    def asked(self) -> dict[str, list[str] | list[float] | float | bool | None]:
        """What names the points, as a sweep records it; the other options say how a point is measured."""
        return {
            "recipes": [*self.recipes],
            "keep_flops": None if self.keep_flops is None else [*self.keep_flops],
            "max_drop": self.max_drop,
            "confidence": self.confidence,
            "evaluations": self.evaluations,
            "keep_models": self.keep_models,
        }
