"""JSON text of an artifact in, its validated content out, and back: a pydantic model of every file a stage writes.

Nothing here imports torch, so that stages without a model (search, inspect) start at once.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from optin_cli.artifacts.base import Artifact, Frozen, Totals, Workload
from optin_cli.artifacts.mask import Budget, GroupMask, Layout


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
