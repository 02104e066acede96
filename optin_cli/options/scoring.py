"""Options of scoring, and the criteria and unit kinds to choose from."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from optin_cli.errors import UsageError
from optin_cli.options.common import BATCH_SIZE, MAX_LENGTH, MOST_ROWS, MOST_RUNS, SEED
from optin_cli.options.declare import DATA, RESEARCH, Checked, option, shared

Estimator = Literal["obs", "sketch", "exact", "hybrid"]
UNITS: Mapping[str, str] = {
    "heads": "head",
    "neurons": "neuron",
    "channels": "channel",
    "experts": "expert",
    "head-dims": "head-dim",
    "tokens": "token",
    "blocks": "block",
}
"""What can be scored, and the kind of the groups that hold it."""
REMOVABLE: Mapping[str, str] = {name: UNITS[name] for name in ("heads", "neurons", "channels", "experts")}
"""Those that the hybrid estimator can score exactly, by removal; tokens always are scored exactly."""
EXACT_KINDS = ("head",)
"""Those that it does score so by default."""


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
    "slimgpt": Criterion(),
    "magnitude": Criterion(needs_data=False),
    "random": Criterion(needs_data=False),
}


@dataclass(frozen=True)
class ScoreOptions(Checked):
    """Options of scoring.

    units: kinds that a model lacks are passed over unless they were asked for. estimator: of trajectory criteria;
    "obs" is the loss of a layer whose remaining columns are re-solved, and "sketch" for layers that cannot be;
    "hybrid" is exact for the kinds in `exact_kinds` and sketches the others. exact_kinds: names or kinds of REMOVABLE;
    None for heads, which a model may lack. damping: of "obs", and of the criterion slimgpt: mu relative to the mean
    diagonal of the inputs' second moment. output_weight, temperature: lambda and tau of the paper. samples,
    exact_samples: calibration samples that each estimator uses. rows: candidates x samples that an exact forward pass
    runs at once. max_length: None for 128 tokens, or what the model holds.
    token_exchange: where tokens or blocks are scored, the share of the MACs to which units are pruned and refitted, as
    tokens or blocks are, to weigh the importance of one against that of the other; None leaves them as scored.
    """

    criterion: str = option(
        "trajectory",
        "--criterion",
        f"How units are judged: {', '.join(CRITERIA)}.",
        choices=CRITERIA,
        panel=RESEARCH,
    )
    units: tuple[str, ...] = option(
        ("heads", "neurons", "channels", "experts", "head-dims"),
        "--units",
        "What to score: of heads, neurons, channels, experts, head-dims (dimensions of queries and keys), blocks "
        "(whole layers) and, in plain vision transformers, tokens.",
        metavar="KIND[,…]",
        choices=UNITS,
    )
    estimator: str = option(
        "obs",
        "--estimator",
        "obs: what a layer loses once its other columns are re-solved; sketch: each unit alone, all in a few backward "
        "passes; exact: remove each; hybrid: sketch and exact.",
        choices=get_args(Estimator),
        panel=RESEARCH,
    )
    damping: float = option(
        0.01, "--damping", "Ridge of obs, relative to the mean square of a layer's inputs.", above=0, panel=RESEARCH
    )
    output_weight: float = option(
        10.0,
        "--lambda",
        "How much changes of the final output count against changes inside.",
        low=0,
        panel=RESEARCH,
    )
    temperature: float = option(
        4.0, "--tau", "Temperature of the softmax by which outputs are compared.", above=0, panel=RESEARCH
    )
    probes: int = option(
        4,
        "--probes",
        "Random probes per sample; more is slower and less noisy.",
        above=0,
        most=MOST_RUNS,
        panel=RESEARCH,
    )
    samples: int = option(512, "--samples", "Calibration samples.", above=0, panel=DATA)
    exact_samples: int = option(
        128, "--exact-samples", "Number of samples used by exact removal.", above=0, panel=RESEARCH
    )
    exact_kinds: tuple[str, ...] | None = option(
        None,
        "--exact-kinds",
        "What hybrid scores exactly, of heads, neurons and channels.",
        metavar="KIND[,…]",
        choices=(*REMOVABLE, *REMOVABLE.values()),
        noun="exact kind",
        panel=RESEARCH,
        unset="heads",
    )
    batch_size: int = shared(32, BATCH_SIZE)
    rows: int = option(
        256,
        "--rows",
        "Rows per forward pass in exact removal; fewer need less memory.",
        above=0,
        most=MOST_ROWS,
        panel=RESEARCH,
    )
    max_length: int | None = shared(None, MAX_LENGTH)
    seed: int = shared(0, replace(SEED, help="Seed for choosing samples and probes."))
    token_exchange: float | None = option(
        0.8,
        "--balance-at",
        "Where tokens or blocks are scored: the share of the MACs at which they and units are cut and refitted, to "
        "weigh the ones against the others; none: as scored.",
        metavar="SHARE|none",
        earlier=("--token-exchange",),
        above=0,
        below=1,
        none=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.units)) < len(self.units) or not self.units:
            raise UsageError(f"The units {', '.join(self.units) or '(none)'} are not a list of different ones.")

    @property
    def removed_kinds(self) -> tuple[str, ...]:
        """Kinds of the groups that the hybrid estimator scores exactly."""
        if self.exact_kinds is None:
            return EXACT_KINDS
        return tuple(dict.fromkeys(REMOVABLE.get(name, name) for name in self.exact_kinds))

    @property
    def unstreamed(self) -> str | None:
        """What of them cannot be had block by block, in words; None if all can."""
        if CRITERIA[self.criterion].terms is None:
            return f"the criterion {self.criterion}"
        if self.estimator != "obs":
            return f"the estimator {self.estimator}"
        return next((f"scores of {name}" for name in self.units if name not in (*REMOVABLE, "head-dims")), None)

    def recorded(self) -> dict[str, Any]:
        """Every constant as artifacts record it."""
        return {**super().recorded(), "exact_kinds": [*self.removed_kinds]}
