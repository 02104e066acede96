"""The constants of scoring, refit, evaluation and sweeps, with their defaults. Nothing here imports torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from optin_cli.errors import UsageError, did_you_mean

Estimator = Literal["sketch", "exact", "hybrid"]


UNITS: Mapping[str, str] = {"heads": "head", "neurons": "neuron", "channels": "channel", "tokens": "token"}
"""What can be scored, and the kind of the groups that hold it."""


REMOVABLE: Mapping[str, str] = {name: kind for name, kind in UNITS.items() if name != "tokens"}
"""Those that the hybrid estimator can score exactly, by removal; tokens always are scored exactly."""


EXACT_KINDS = ("head",)
"""Those that it does score so by default."""


@dataclass(frozen=True)
class ScoreOptions:
    """Every constant of a scoring run.

    units: what is scored, of UNITS; kinds that a model lacks are passed over unless they were asked for. criterion: a
    key of CRITERIA. estimator: "sketch" for all units, "exact" for all, or "hybrid": exact for
    the kinds in `exact_kinds`, sketch for the others. exact_kinds: names or kinds of REMOVABLE; None for heads, which a
    model may lack. rescore: shares of the MACs at which, cut to that share and
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
    exact_kinds: tuple[str, ...] | None = None
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
        words = {*REMOVABLE, *REMOVABLE.values()}
        if unknown := [name for name in self.exact_kinds or () if name not in words]:
            raise UsageError(f"Unknown exact kind {unknown[0]!r}.", hint=did_you_mean(unknown[0], REMOVABLE))
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

    @property
    def removed_kinds(self) -> tuple[str, ...]:
        """Kinds of the groups that the hybrid estimator scores exactly."""
        if self.exact_kinds is None:
            return EXACT_KINDS
        return tuple(dict.fromkeys(REMOVABLE.get(name, name) for name in self.exact_kinds))

    def recorded(self) -> dict[str, Any]:
        """Every constant as artifacts record it."""
        return {
            **asdict(self),
            "exact_kinds": list(self.removed_kinds),
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
