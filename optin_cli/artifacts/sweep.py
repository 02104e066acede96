"""What was measured: the records that evaluations and sweeps write."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from optin_cli.artifacts.base import Artifact, Frozen, Totals, Workload
from optin_cli.artifacts.evaluation import Latency


class SweepBaseline(Frozen):
    """The original, by the measures of a sweep."""

    value: float
    standard_error: float | None
    totals: Totals
    latency: Latency | None


class SweepPoint(Frozen):
    """One recipe at one budget; ratios, drop and agreement are against the original.

    asked: share of the MACs to keep. value: of the metric. metrics: all that the task names. latency_ratio: from
    runs interleaved with the original's.
    prepare_seconds: what the recipe does once for all its budgets (scoring); prune_seconds: search, cut, refit.
    """

    recipe: str
    asked: float
    macs_ratio: float
    parameters_ratio: float
    value: float
    metrics: dict[str, float] = Field(default_factory=dict)
    standard_error: float | None
    drop: float
    agreement: float | None
    latency: Latency | None
    latency_ratio: float | None
    prepare_seconds: float
    prune_seconds: float


class Sweep(Artifact):
    """`optin sweep`: what each recipe loses at each budget.

    chosen: number of the point that is the smallest within the allowed drop.
    """

    kind: ClassVar[str] = "sweep"
    schema_: Literal["optin.sweep/1"] = Field(default="optin.sweep/1", alias="schema")
    task: str
    split: str
    samples: int
    metric: str
    higher_is_better: bool
    workload: Workload
    baseline: SweepBaseline
    points: list[SweepPoint]
    chosen: int | None = None

    @model_validator(mode="after")
    def _check(self) -> Sweep:
        if self.chosen is not None and not 0 <= self.chosen < len(self.points):
            raise ValueError(f"chosen is {self.chosen}, but there are {len(self.points)} points")
        return self
