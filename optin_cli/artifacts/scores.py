"""The scores artifact: per group one float32 importance vector and standard errors, as safetensors with a JSON header.

Read and written with numpy, so that search and inspect need no torch.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from optin_cli.artifacts.base import Artifact, Count, Source, Totals, Vector32, Workload, parse
from optin_cli.artifacts.costs import BlockExchange, GroupCost, TokenCosts, TokenExchange, require_within
from optin_cli.artifacts.tensor_files import require_few_axes
from optin_cli.errors import ArtifactError
from optin_cli.files import STDIO, made_by, read_bytes, sha256_of, write_bytes


class GroupScores(GroupCost):
    """A scored group: its costs and how its importance was estimated.

    estimator: "obs" (see `scoring/curves.py`), "sketch", "exact", or the criterion of a baseline. samples: how many the
    mean is over.
    """

    estimator: str
    samples: Count


class ScoresHeader(Artifact):
    """`optin score`: JSON header of the scores file, beside one float32 importance vector per group.

    token_exchange: factor that tokens' importances were multiplied by; None if they were not. block_exchange: what
    those of whole blocks were scaled by, likewise.
    """

    kind: ClassVar[str] = "scores"
    needs: ClassVar[tuple[str, ...]] = ("checkpoint",)
    schema_: Literal["optin.scores/1"] = Field(default="optin.scores/1", alias="schema")
    family: str
    architecture: str
    criterion: str
    workload: Workload
    totals: Totals
    groups: dict[str, GroupScores]
    tokens: TokenCosts | None = None
    token_exchange: TokenExchange | None = None
    block_exchange: BlockExchange | None = None

    @model_validator(mode="after")
    def _check(self) -> ScoresHeader:
        require_within(self.groups, self.totals)
        return self


HEADER = "optin"
MOST_SCORES_BYTES = 1 << 30
"""No scores file is larger."""
IMPORTANCE = "importance."
ERROR = "standard_error."


@dataclass(frozen=True)
class Scores:
    """Importance of every unit: vectors (units,) by group name; larger is more important, never negative.

    standard_error: over samples, of importances that are means over samples. Those of the estimator obs and of slimgpt
    are not: there it is the standard error of each unit's own sensitivity, the loss without it if nothing makes up
    for that.
    """

    header: ScoresHeader
    importance: Mapping[str, Vector32]
    standard_error: Mapping[str, Vector32] = field(default_factory=dict)

    def content(self) -> bytes:
        """The file's bytes; equal scores give equal bytes."""
        tensors = {IMPORTANCE + name: np.ascontiguousarray(v, np.float32) for name, v in self.importance.items()}
        tensors |= {ERROR + name: np.ascontiguousarray(v, np.float32) for name, v in self.standard_error.items()}
        return save(tensors, metadata={HEADER: self.header.dump()})

    def source(self, name: str) -> Source:
        """Name and hash, as a mask records them."""
        return Source(name=name, sha256=sha256_of(self.content()))


def write_scores(path: str | Path, scores: Scores, *, force: bool = False) -> None:
    """Write atomically, or to standard output for "-"."""
    write_bytes(path, scores.content(), force=force)


def read_scores(path: str | Path) -> Scores:
    """Read and validate a scores file, or standard input for "-".

    Raises:
        ArtifactError: it is not a scores file, or a vector is missing, of the wrong length, or not finite.
    """
    content = read_bytes(path, "scores", MOST_SCORES_BYTES)
    name = "standard input" if str(path) == STDIO else str(path)
    if content[:1] == b"{":
        made = re.search(rb'"schema": "optin\.([a-z]+)/', content)
        what = f"a {made[1].decode()} file" if made else "JSON"
        raise ArtifactError(
            f"{name} is {what}, not a complete safetensors file; expected a scores file.", hint=made_by("scores")
        )
    with tempfile.NamedTemporaryFile(suffix=".safetensors") as copy:
        copy.write(content)
        copy.flush()
        try:
            require_few_axes(Path(copy.name))
            with safe_open(copy.name, framework="np") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
        except (SafetensorError, OSError, TypeError, AttributeError) as error:
            raise ArtifactError(
                f"{name} is not a complete safetensors file: {error}.", hint="Expected what optin score wrote."
            ) from error
    if HEADER not in metadata:
        raise ArtifactError(
            f"{name} is a safetensors file without an optin header, so it holds no scores.",
            hint="Expected what optin score wrote; a checkpoint goes to optin score first.",
        )
    header = parse(ScoresHeader, metadata[HEADER], name)
    odd = [key for key, tensor in tensors.items() if tensor.dtype != np.float32]
    if odd:
        raise ArtifactError(f"{name}: the vector {odd[0]} is {tensors[odd[0]].dtype}; expected float32 numbers.")
    importance = {group: _vector(tensors, IMPORTANCE, group, header, name) for group in header.groups}
    errors = {
        group: _vector(tensors, ERROR, group, header, name) for group in header.groups if ERROR + group in tensors
    }
    return Scores(header, importance, errors)


def _vector(tensors: Mapping[str, Vector32], prefix: str, group: str, header: ScoresHeader, name: str) -> Vector32:
    vector = tensors.get(prefix + group)
    units = header.groups[group].units
    if vector is None or vector.shape != (units,):
        found = "missing" if vector is None else f"of shape {vector.shape}"
        raise ArtifactError(f"{name}: the vector {prefix}{group} is {found}; expected {units} numbers.")
    if not np.isfinite(vector).all():
        bad = int(np.flatnonzero(~np.isfinite(vector))[0])
        raise ArtifactError(
            f"{name}: the score of {group}.{bad} is {vector[bad]}; expected finite numbers.",
            hint="Score the checkpoint again; if this comes back, its activations overflow on the calibration data.",
        )
    if bool((vector < 0).any()):
        bad = int(np.flatnonzero(vector < 0)[0])
        raise ArtifactError(f"{name}: {prefix}{group}, unit {bad}, is {vector[bad]}; expected numbers of at least 0.")
    return vector
