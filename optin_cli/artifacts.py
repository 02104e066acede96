"""JSON text of an artifact in, its validated content out, and back: a pydantic model of every file a stage writes.

Nothing here imports torch, so that stages without a model (search, inspect) start at once.
"""

from __future__ import annotations

import json
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import Field, ValidationError, model_validator

from optin_cli.errors import ArtifactError
from optin_cli.export_record import Export
from optin_cli.latency_table import LatencyTable
from optin_cli.layouts import Layout
from optin_cli.records import Artifact, Frozen, Options, Source, Totals, Workload, to_json
from optin_cli.results import Comparison, Evaluation, Latency, Measure, Sweep, SweepBaseline, SweepPoint
from optin_cli.token_records import BlockCost, TokenCosts, TokenExchange

__all__ = [
    "KINDS",
    "Artifact",
    "BlockCost",
    "Budget",
    "Certificate",
    "Comparison",
    "Evaluation",
    "Export",
    "Frozen",
    "GroupCost",
    "GroupMask",
    "GroupScores",
    "Latency",
    "LatencyTable",
    "Manifest",
    "Mask",
    "Measure",
    "Options",
    "Profile",
    "Refit",
    "ScoresHeader",
    "SharedCost",
    "Source",
    "StockCounts",
    "Sweep",
    "SweepBaseline",
    "SweepPoint",
    "TokenCosts",
    "TokenExchange",
    "Totals",
    "Workload",
    "parse",
    "require_source",
    "to_json",
    "validate",
]


class SharedCost(Frozen):
    """What one unit of each of two groups costs in weights that both index."""

    macs: float
    parameters: int


class StockCounts(Frozen):
    """Counts of a group's units that the stock config can state for all blocks: multiples of `step`, 1 or more.

    divisor_of: what they must divide, None for anything.
    """

    step: int = 1
    divisor_of: int | None = None

    def allows(self, count: int) -> bool:
        """Whether the config can state `count` units."""
        fits = count >= 1 and count % self.step == 0
        return fits and (self.divisor_of is None or self.divisor_of % count == 0)

    @property
    def words(self) -> str:
        """What counts must be."""
        multiple = f"multiples of {self.step}" if self.step > 1 else "1 or more"
        return f"counts are {multiple}" + (f" that divide {self.divisor_of}" if self.divisor_of else "")


class GroupCost(Frozen):
    """One prunable axis: how many units it has, and the columns (of the consumer's input) and cost of each.

    A unit's cost is what removing it alone saves. least: fewest units that can stay. shared: by the name of another
    group, what both saved together and is so counted twice. stock: None where the stock config cannot state that
    there are fewer units.
    """

    kind: str
    block: str
    units: int
    unit_width: int = 1
    unit_macs: float
    unit_parameters: int
    least: int = 0
    shared: dict[str, SharedCost] = Field(default_factory=dict)
    stock: StockCounts | None = None


class Profile(Artifact):
    """`optin profile`: cost of the whole model and of each group's units."""

    kind: ClassVar[str] = "profile"
    schema_: Literal["optin.profile/1"] = Field(default="optin.profile/1", alias="schema")
    family: str
    architecture: str
    workload: Workload
    totals: Totals
    groups: dict[str, GroupCost]


class GroupScores(GroupCost):
    """A scored group: its costs and how its importance was estimated."""

    estimator: str
    samples: int


class ScoresHeader(Artifact):
    """`optin score`: JSON header of the scores file, beside one float32 importance vector per group.

    token_exchange: by what tokens' importances were multiplied, None where they stand as scored.
    """

    kind: ClassVar[str] = "scores"
    schema_: Literal["optin.scores/1"] = Field(default="optin.scores/1", alias="schema")
    family: str
    architecture: str
    criterion: str
    workload: Workload
    totals: Totals
    groups: dict[str, GroupScores]
    tokens: TokenCosts | None = None
    token_exchange: TokenExchange | None = None


class GroupMask(Frozen):
    """Kept unit indices of one group, ascending."""

    units: int = Field(ge=1)
    kept: list[int]

    @model_validator(mode="after")
    def _check(self) -> GroupMask:
        outside = [u for u in self.kept if not 0 <= u < self.units]
        if outside:
            raise ValueError(f"index {outside[0]} is out of range: the group has units 0 to {self.units - 1}")
        if len(set(self.kept)) != len(self.kept):
            twice = next(u for u in self.kept if self.kept.count(u) > 1)
            raise ValueError(f"index {twice} is listed more than once")
        if sorted(self.kept) != self.kept:
            raise ValueError("kept indices must be in ascending order")
        return self


class Budget(Frozen):
    """What was asked, and what the mask reaches, as shares of the whole model (0 to 1)."""

    asked: dict[str, float]
    reached: dict[str, float]


class Mask(Artifact):
    """`optin search`: the kept units of every group under a budget.

    importance_lost: None where the units were not chosen by their scores alone. ragged_importance_lost: under a
    uniform layout, what the mask of the same limits loses whose layers differ.
    """

    kind: ClassVar[str] = "mask"
    schema_: Literal["optin.mask/1"] = Field(default="optin.mask/1", alias="schema")
    workload: Workload
    budget: Budget
    importance_lost: float | None
    ragged_importance_lost: float | None = None
    groups: dict[str, GroupMask]


class Refit(Frozen):
    """How one consumer was re-solved.

    before, after: held-out squared error of the residual stream behind it, relative to the stream's size;
    ridge: the one used; kept: whether the new weights were taken (they were not when the error did not fall);
    reason: why none could be solved for, if so.
    """

    before: float
    after: float
    ridge: float
    kept: bool
    reason: str | None = None


class Certificate(Frozen):
    """Largest absolute differences between outputs, over a probe batch.

    `reloaded` compares the cut model in memory with the saved folder loaded in a fresh process by the library
    without optin; `masked` compares the cut model with the masked original, over rows of the batch in which the same
    tokens merge (where two are alike equally, rounding decides which).
    """

    probe: str
    loader: str
    outputs: list[str]
    reloaded: float
    masked: float | None
    tolerance: float


class Manifest(Artifact):
    """`optin prune`: what the folder `optin.json` lies in was cut from, how, and the proof that it loads.

    layout: uniform where the library's own class loads the folder by its config alone.
    """

    kind: ClassVar[str] = "manifest"
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
    groups: dict[str, GroupMask]
    refit: dict[str, Refit] | None = None
    certificate: Certificate
    versions: dict[str, str]


A = TypeVar("A", bound=Artifact)

KINDS: tuple[type[Artifact], ...] = (
    Profile,
    ScoresHeader,
    Mask,
    Manifest,
    Evaluation,
    Sweep,
    Export,
    LatencyTable,
)


def parse(kind: type[A], content: str | bytes, name: str) -> A:
    """Validate JSON text as an artifact of `kind`; all problems are reported together, with their places."""
    try:
        raw = json.loads(content)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ArtifactError(f"{name} is not valid JSON: {error}.", hint=f"Expected a {kind.kind} file.") from error
    return validate(kind, raw, name)


def validate(kind: type[A], raw: Any, name: str) -> A:
    """Validate a decoded JSON document as an artifact of `kind`."""
    expected = str(kind.model_fields["schema_"].default)
    found = raw.get("schema") if isinstance(raw, dict) else None
    if found != expected:
        made_by = {str(k.model_fields["schema_"].default): k.kind for k in KINDS}.get(str(found))
        what = f"a {made_by} file" if made_by else "not an optin artifact of that kind"
        raise ArtifactError(f"{name} is {what} (schema {found!r}); expected a {kind.kind} file (schema {expected!r}).")
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        lines = [
            f"  {'.'.join(str(p) for p in e['loc']) or '(root)'}: {e['msg'].removeprefix('Value error, ')}"
            for e in error.errors()
        ]
        raise ArtifactError(f"{name} is not a valid {kind.kind} file:\n" + "\n".join(lines)) from error


def require_source(artifact: Artifact, artifact_name: str, role: str, found: Source) -> None:
    """Refuse an artifact that was made from another `role` (checkpoint, scores, …) than the one given."""
    made_from = artifact.inputs.get(role)
    if made_from is None or made_from.sha256 != found.sha256:
        origin = f"{made_from.name} (sha256 {made_from.sha256[:12]})" if made_from else "something unnamed"
        raise ArtifactError(
            f"{artifact_name} was made from {role} {origin}, but {found.name} (sha256 {found.sha256[:12]}) was given.",
            hint=f"Pass the {role} it was made from, or make the {artifact.kind} again from {found.name}.",
        )
