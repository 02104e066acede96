"""The manifest artifact: what a pruned folder was made from, how, and the proof that it loads."""

from typing import ClassVar, Literal

from pydantic import Field

from optin_cli.artifacts.base import Artifact, Frozen, NotNegative, Totals, Workload
from optin_cli.artifacts.mask import Budget, Groups
from optin_cli.options.search import Layout


class Refit(Frozen):
    """Result of re-solving one consumer.

    before, after: held-out squared error of the residual stream after it, relative to the stream's size. ridge: the
    one used. kept: whether the new weights were kept (only if the error fell). reason: why it was not solved, if so.
    """

    before: NotNegative
    after: NotNegative
    ridge: NotNegative
    kept: bool
    reason: str | None = None


class Generation(Frozen):
    """Greedy tokens that the reloaded folder generates with its KV cache, compared with its logits without one.

    difference: the largest of a logit. ties: tokens in whose place others are the best without the cache, by no more
    than rounding.
    """

    prompts: int
    tokens: int
    difference: float
    tolerance: float
    ties: int

    @property
    def words(self) -> str:
        """The finding in a sentence part."""
        ties = f", but for {self.ties} tie(s)" if self.ties else ""
        return (
            f"generates the same {self.tokens} tokens with and without KV cache{ties}: logits differ by at most "
            f"{self.difference:.2g} (tolerance {self.tolerance:.2g})"
        )


class Certificate(Frozen):
    """Largest absolute output differences over a probe batch.

    `reloaded` compares the pruned model in memory with the saved folder, loaded by its library in a fresh process
    without optin. `masked` compares the pruned model with the masked original, over rows in which the same tokens merge
    (rounding decides between equally similar tokens). note: what was not tried, and why. generation: of causal models.
    """

    probe: str
    loader: str
    outputs: list[str]
    reloaded: NotNegative
    masked: NotNegative | None
    tolerance: NotNegative
    note: str | None = None
    generation: Generation | None = None


class Manifest(Artifact):
    """`optin prune`: record of a folder, of "uniform" layout if its library loads it by the config alone.

    left_out: tensors that the original's files hold beside the model's weights, by name. weights: sha256 of the files
    that hold the certified weights, by name; none in earlier records.
    """

    kind: ClassVar[str] = "manifest"
    needs: ClassVar[tuple[str, ...]] = ("checkpoint",)
    schema_: Literal["optin.manifest/1"] = Field(default="optin.manifest/1", alias="schema")
    family: str
    architecture: str
    model_class: str
    auto_class: str
    workload: Workload
    budget: Budget
    before: Totals
    after: Totals
    layout: Layout = "ragged"
    groups: Groups
    left_out: tuple[str, ...] = ()
    refit: dict[str, Refit] | None = None
    certificate: Certificate
    weights: dict[str, str] = Field(default_factory=dict)
    versions: dict[str, str]
