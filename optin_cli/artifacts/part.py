"""The part artifact: sums of a share of the calibration samples, of which `optin merge` makes scores.

A safetensors file with a JSON header. Of portion n it holds, by name of a group, n.sum.NAME and n.square.NAME of the
importances, and n.extra.NAME of whatever else is summed; and what removal curves take of the model: weight.CONSUMER,
basis.GROUP and dual.GROUP.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from optin_cli.artifacts.base import Artifact, Count, Frozen, parse
from optin_cli.artifacts.scores import HEADER, ScoresHeader
from optin_cli.artifacts.tensor_files import read_tensor_header
from optin_cli.errors import ArtifactError


class Curved(Frozen):
    """A group whose importance is read off a removal curve. centred: the intercept is re-solved too."""

    consumer: str
    centred: bool


class PartHeader(Artifact):
    """`optin score --shard`: JSON header of a part.

    shard, shards: which of how many parts. portions: of the whole run; counts: samples by name of the group, of each of
    those that are here, by number. fingerprint: of all that sums depend on. scores: header of the scores that are made
    of all parts, without any samples. curved: by group name. dims: names of groups of query-key dimensions.
    """

    kind: ClassVar[str] = "part"
    needs: ClassVar[tuple[str, ...]] = ("checkpoint", "calibration")
    schema_: Literal["optin.part/1"] = Field(default="optin.part/1", alias="schema")
    shard: int = Field(ge=1)
    shards: int = Field(ge=1)
    portions: int = Field(ge=1)
    counts: dict[str, dict[str, Count]]
    fingerprint: str
    scores: ScoresHeader
    curved: dict[str, Curved]
    dims: tuple[str, ...]

    @model_validator(mode="after")
    def _check(self) -> PartHeader:
        if self.shard > self.shards:
            raise ValueError(f"it is part {self.shard} of {self.shards}")
        if unknown := [name for name in (*self.curved, *self.dims) if name not in self.scores.groups]:
            raise ValueError(f"it knows nothing of the group {unknown[0]}")
        return self

    @property
    def name(self) -> str:
        """Which part it is, as --shard says it."""
        return f"{self.shard}/{self.shards}"

    @property
    def samples(self) -> int:
        """How many samples it is of: most that any group has seen."""
        names = {name for counts in self.counts.values() for name in counts}
        return max((sum(counts.get(name, 0) for counts in self.counts.values()) for name in names), default=0)


def read_header(path: Path) -> str | None:
    """Our JSON header of a safetensors file, whose tensors are not read; None where it has none, or is damaged."""
    metadata = (read_tensor_header(path) or {}).get("__metadata__")
    found = metadata.get(HEADER) if isinstance(metadata, dict) else None
    return found if isinstance(found, str) else None


def is_part(path: Path) -> bool:
    """Whether the header of a safetensors file says that it is a part."""
    try:
        found = read_header(path)
        return found is not None and json.loads(found).get("schema") == PartHeader.model_fields["schema_"].default
    except (OSError, ValueError, AttributeError):
        return False


def read_part_header(path: Path) -> PartHeader:
    """The header of a part (ArtifactError if it is none)."""
    try:
        found = read_header(path)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read as a part file: {error.strerror}.") from error
    if found is None:
        raise ArtifactError(
            f"{path} is not a part of scores: it has no optin header.", hint="Expected what optin score --shard wrote."
        )
    return parse(PartHeader, found, str(path))
