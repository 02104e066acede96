"""The constants of scoring, refit, evaluation and sweeps, with their defaults. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from optin_cli.errors import UsageError
from optin_cli.options.evaluation import EvalOptions
from optin_cli.options.scoring import ScoreOptions

RECIPES = (
    "optin",
    "one-shot",
    "no-refit",
    "magnitude",
    "wanda",
    "fisher",
    "random",
    "optin-paper",
    "kwon",
    "kprune",
)
"""Names of the recipes, which shell completion tells without importing them."""


@dataclass(frozen=True)
class SweepOptions:
    """Which points a sweep measures: every recipe at every share of the MACs, or one recipe up to an allowed drop.

    evaluations: most models that are tried for `max_drop`. ridge: for recipes that refit; None chooses by held-out
    error. scoring: of the recipes that score; its samples and seed choose the calibration set. evaluation: of every
    model; its samples and seed choose what it is evaluated on.
    """

    recipes: tuple[str, ...] = ("optin",)
    keep_flops: tuple[float, ...] | None = None
    max_drop: float | None = None
    evaluations: int = 6
    ridge: float | None = None
    scoring: ScoreOptions = field(default_factory=ScoreOptions)
    evaluation: EvalOptions = field(default_factory=EvalOptions)

    def __post_init__(self) -> None:
        if (self.keep_flops is None) == (self.max_drop is None):
            both = "Both --keep-flops and --max-drop were given; expected one of them."
            what = "No budget was given." if self.keep_flops is None else both
            raise UsageError(what, hint="Pass --keep-flops 0.6,0.5,0.4 or --max-drop 0.01.")
        for share in self.keep_flops or ():
            if not 0 < share <= 1:
                raise UsageError(f"The share of macs to keep is {share}; expected a number above 0, at most 1.")
        if self.max_drop is not None and not 0 <= self.max_drop < float("inf"):
            raise UsageError(f"The allowed drop is {self.max_drop}; expected 0 or more, such as 0.01.")
        if self.evaluations < 1:
            raise UsageError(f"{self.evaluations} evaluations were asked for; expected at least 1.")
        if self.ridge is not None and self.ridge <= 0:
            raise UsageError(f"The ridge is {self.ridge}; expected a positive number.")
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

    def asked(self) -> dict[str, list[str] | list[float] | float | None]:
        """What names the points, as a sweep records it; the other options say how a point is measured."""
        return {
            "recipes": [*self.recipes],
            "keep_flops": None if self.keep_flops is None else [*self.keep_flops],
            "max_drop": self.max_drop,
            "evaluations": self.evaluations,
        }
