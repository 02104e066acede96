"""The constants of scoring, refit, evaluation and sweeps, with their defaults. Nothing here imports torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from optin_cli.errors import UsageError, did_you_mean

MIN_REFIT_SAMPLES = 8
"""One sample in four is held out to judge a refit, so fewer than this say nothing."""

Estimator = Literal["sketch", "exact", "hybrid"]

UNITS: Mapping[str, str] = {"heads": "head", "neurons": "neuron", "channels": "channel", "tokens": "token"}
"""What can be scored, and the kind of the groups that hold it."""


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


@dataclass(frozen=True)
class ScoreOptions:
    """Every constant of a scoring run.

    units: what is scored, of UNITS; kinds that a model lacks are passed over unless they were asked for. criterion: a
    key of CRITERIA. estimator: "sketch" for all units, "exact" for all, or "hybrid": exact for
    the kinds in `exact_kinds`, sketch for the others. rescore: shares of the MACs at which, cut to that share and
    refitted, the model's remaining units are scored anew (trajectory criteria only). output_weight is lambda,
    temperature is tau. samples, exact_samples: how many calibration samples each estimator sees. probes: backward
    passes a sample. rows: candidates x samples that an exact forward pass runs at once. max_length: None for 128
    tokens, or what the model holds. token_exchange: where tokens are scored, the share of the MACs at which units and
    tokens are each cut and refitted, to weigh the importance of one against that of the other; None for as scored.
    """

    criterion: str = "trajectory"
    units: tuple[str, ...] = ("heads", "neurons", "channels")
    estimator: str = "sketch"
    rescore: tuple[float, ...] = (0.8, 0.6)
    output_weight: float = 10.0
    temperature: float = 4.0
    probes: int = 4
    samples: int = 512
    exact_samples: int = 128
    exact_kinds: tuple[str, ...] = ("head",)
    batch_size: int = 32
    rows: int = 256
    max_length: int | None = None
    seed: int = 0
    token_exchange: float | None = 0.8

    def __post_init__(self) -> None:
        positive = ("temperature", "probes", "samples", "exact_samples", "batch_size", "rows")
        for name in positive:
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"{name} is {getattr(self, name)}; expected a positive number.")
        if unknown := [name for name in self.units if name not in UNITS]:
            raise UsageError(f"Unknown units {unknown[0]!r}.", hint=did_you_mean(unknown[0], UNITS))
        if len(set(self.units)) < len(self.units) or not self.units:
            raise UsageError(f"The units {', '.join(self.units) or '(none)'} are not a list of different ones.")
        if self.estimator not in get_args(Estimator):
            raise UsageError(
                f"Unknown estimator {self.estimator!r}.",
                hint=did_you_mean(self.estimator, get_args(Estimator)),
            )
        if any(not 0 < low < high for high, low in itertools.pairwise((1.0, *self.rescore))):
            raise UsageError(
                f"rescore is {', '.join(map(str, self.rescore))}; expected falling shares below 1, such as 0.8,0.6."
            )
        if self.token_exchange is not None and not 0 < self.token_exchange < 1:
            raise UsageError(f"token_exchange is {self.token_exchange}; expected a share between 0 and 1, or none.")
        if not 0 <= self.output_weight < math.inf:
            raise UsageError(f"output_weight is {self.output_weight}; expected 0 or more.")
        if self.criterion not in CRITERIA:
            raise UsageError(f"Unknown criterion {self.criterion!r}.", hint=did_you_mean(self.criterion, CRITERIA))

    def recorded(self) -> dict[str, Any]:
        """Every constant as artifacts record it."""
        return {
            **asdict(self),
            "exact_kinds": list(self.exact_kinds),
            "rescore": list(self.rescore),
            "units": [*self.units],
        }


@dataclass(frozen=True)
class Criterion:
    """How units are judged.

    terms: (manifold, output) switches of the trajectory objective, or None for a baseline.
    """

    terms: tuple[float, float] | None = None
    needs_data: bool = True
    needs_labels: bool = False


CRITERIA: Mapping[str, Criterion] = {
    "trajectory": Criterion(terms=(1.0, 1.0)),
    "manifold": Criterion(terms=(1.0, 0.0)),
    "output": Criterion(terms=(0.0, 1.0)),
    "fisher": Criterion(needs_labels=True),
    "wanda": Criterion(),
    "magnitude": Criterion(needs_data=False),
    "random": Criterion(needs_data=False),
}


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


@dataclass(frozen=True)
class AnswerOptions:
    """Constants of question answering.

    doc_stride: tokens that consecutive windows of a context share. max_answer: most tokens of an answer.
    no_answer_threshold: how far "no answer" must exceed the best answer, where a task allows it.
    """

    doc_stride: int = 128
    max_answer: int = 30
    no_answer_threshold: float = 0.0

    def __post_init__(self) -> None:
        if self.doc_stride < 0 or self.max_answer < 1:
            raise UsageError(
                f"doc_stride is {self.doc_stride} and max_answer {self.max_answer}; expected at least 0 and 1."
            )


@dataclass(frozen=True)
class EvalOptions:
    """Every constant of an evaluation. latency_runs = 0 measures no latency. Lengths are those of texts."""

    batch_size: int = 32
    max_length: int | None = None
    seq_len: int | None = 128
    latency_batch: int = 32
    latency_length: int = 64
    latency_runs: int = 20
    latency_warmup: int = 3
    answers: AnswerOptions = AnswerOptions()


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


@dataclass(frozen=True)
class SweepOptions:
    """Which points a sweep measures: every recipe at every share of the MACs, or one recipe up to an allowed drop.

    evaluations: most models that are tried for `max_drop`. ridge: for recipes that refit; None chooses by held-out
    error.
    """

    recipes: tuple[str, ...] = ("optin",)
    keep_flops: tuple[float, ...] | None = None
    max_drop: float | None = None
    evaluations: int = 6
    ridge: float | None = None

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
