"""The evaluation artifact: task metrics, size and speed."""

from typing import ClassVar, Literal

from pydantic import Field

from optin_cli.artifacts.base import Artifact, Count, Frozen, NotNegative, Totals, Workload, timed_on
from optin_cli.artifacts.generation import Draft, Generation


class Measure(Frozen):
    """A named number."""

    name: str
    value: float


def with_error(value: float, error: float | None) -> str:
    """A metric with its standard error, where that is known, in words."""
    return f"{value:.4f}" if error is None else f"{value:.4f} ± {error:.4f}"


def drop_words(drop: float, *, relative: bool) -> str:
    """A drop with its sign, in words: in percent where it is relative."""
    return f"{drop:+.1%}" if relative else f"{drop:+.4f}"


class Latency(Workload):
    """Median wall time of a forward pass. runtime: torch, or the runtime of an exported file."""

    runs: int = Field(ge=1)
    device: str
    runtime: str = "torch"
    threads: int = Field(ge=1)
    median_ms: NotNegative
    samples_per_second: NotNegative

    @property
    def timed_on(self) -> str:
        """The device and, of a CPU, its threads, in words."""
        return timed_on(self.device, self.threads)


class Comparison(Frozen):
    """Comparison with another model on the same samples; ratios are this over other.

    runtime, metrics, class_iou, generation: of the other. agreement: share of samples, or of pixels, of the same class;
    of the same classes where a sample has several; of a regression, Lin's concordance of the values. kl: divergence of
    this model's distributions from the other's, in nats; of a regression, of normal ones with the spread of the other's
    values. drop: how much worse the metric is, with `relative_drop` as a share of the other's value; drop_error: its
    standard error over samples that both models see.
    """

    name: str
    runtime: str = "torch"
    metric: Measure | None
    metrics: dict[str, float] = Field(default_factory=dict)
    class_iou: dict[str, float | None] = Field(default_factory=dict)
    drop: float | None
    drop_error: NotNegative | None = None
    relative_drop: bool = False
    agreement: float | None
    kl: float | None
    macs_ratio: NotNegative
    parameters_ratio: NotNegative
    bytes_ratio: NotNegative
    latency_ratio: NotNegative | None
    generation: Generation | None = None

    @property
    def known_metrics(self) -> dict[str, float]:
        """The other's metrics by name; of earlier files the first alone."""
        return self.metrics or ({} if self.metric is None else {self.metric.name: self.metric.value})


class DrawnScene(Frozen):
    """A picture that an evaluation drew of one image: its file's name and sha256, and what it shows.

    agreement: share of pixels on which the two models agree. pixel_accuracy: of this model, None without a label map.
    """

    file: str
    sha256: str
    image: str
    agreement: float | None
    pixel_accuracy: float | None


class Evaluation(Artifact):
    """`optin eval`: task metric, size and speed of a checkpoint.

    class_iou: in semantic segmentation, intersection over union of each class by name, None for one that is nowhere.
    truncated: texts whose ends were cut off, at `options["max_length"]` tokens. tokens: of running text that were
    predicted, whose samples are windows. notes: what makes a value suspicious. generation: speed of generating text.
    draft: what the checkpoint is worth as the draft of another model.
    """

    kind: ClassVar[str] = "eval"
    needs: ClassVar[tuple[str, ...]] = ("checkpoint",)
    schema_: Literal["optin.eval/1"] = Field(default="optin.eval/1", alias="schema")
    task: str | None
    split: str
    samples: Count
    metric: Measure | None
    metrics: dict[str, float]
    standard_error: NotNegative | None
    class_iou: dict[str, float | None] = Field(default_factory=dict)
    truncated: Count = 0
    tokens: Count | None = None
    notes: tuple[str, ...] = ()
    pictures: tuple[DrawnScene, ...] = ()
    workload: Workload
    totals: Totals
    latency: Latency | None
    generation: Generation | None = None
    draft: Draft | None = None
    against: Comparison | None

    @property
    def headings(self) -> tuple[str, str]:
        """What tells the model and the one that it is compared with apart: their names, or where they lay."""
        mine, other = self.inputs["checkpoint"], self.against
        name = "" if other is None else other.name
        if mine.name != name:
            return mine.name, name
        place = self.inputs["against"].place if "against" in self.inputs else name
        return (mine.place, place) if mine.place != place else (name, f"{name} (--against)")
