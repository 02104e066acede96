"""The sweep artifact: what each recipe loses at each budget."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from optin_cli.artifacts.base import Artifact, Count, Frozen, NotNegative, Totals, Workload
from optin_cli.artifacts.evaluation import Latency, drop_words

RESULT, PARTIAL = "sweep.json", "sweep.partial.json"
"""The file in the folder of a sweep, and that of one that was interrupted."""


class SweepBaseline(Frozen):
    """The original model, measured as the sweep measures. metrics: all of the task; none in earlier files."""

    value: float
    metrics: dict[str, float] = Field(default_factory=dict)
    standard_error: NotNegative | None
    totals: Totals
    latency: Latency | None


class SweepPoint(Frozen):
    """One recipe at one budget; ratios, drop and agreement are relative to the original.

    asked: share of the MACs to keep. value: of the task's first metric. metrics: all of the task. latency_ratio: from
    runs interleaved with the original's. prepare_seconds: work done once for all budgets (scoring). prune_seconds:
    search, pruning and refit. drop_error: standard error of the drop over samples that both models see.
    """

    recipe: str
    asked: float
    macs_ratio: NotNegative
    parameters_ratio: NotNegative
    value: float
    metrics: dict[str, float] = Field(default_factory=dict)
    standard_error: NotNegative | None
    drop: float
    drop_error: NotNegative | None = None
    agreement: float | None
    latency: Latency | None
    latency_ratio: NotNegative | None
    prepare_seconds: NotNegative
    prune_seconds: NotNegative


class Sweep(Artifact):
    """`optin sweep`: metric, size and speed of each recipe at each budget.

    relative_drop: drops are shares of the original's value. chosen: the smallest within the allowed drop.
    """

    kind: ClassVar[str] = "sweep"
    needs: ClassVar[tuple[str, ...]] = ("checkpoint",)
    schema_: Literal["optin.sweep/1"] = Field(default="optin.sweep/1", alias="schema")
    task: str
    split: str
    samples: Count
    metric: str
    higher_is_better: bool
    relative_drop: bool = False
    workload: Workload
    baseline: SweepBaseline
    points: list[SweepPoint]
    chosen: int | None = None

    def limit(self, drop: float) -> float:
        """The metric at which a drop is reached."""
        change = drop * self.baseline.value if self.relative_drop else drop
        return self.baseline.value - change if self.higher_is_better else self.baseline.value + change

    def words_for(self, drop: float) -> str:
        """A drop with its sign, in words."""
        return drop_words(drop, relative=self.relative_drop)

    @model_validator(mode="after")
    def _check(self) -> Sweep:
        if self.chosen is not None and not 0 <= self.chosen < len(self.points):
            raise ValueError(f"chosen is {self.chosen}, but there are {len(self.points)} points")
        return self
