"""Base records of every artifact: head, sources, totals, input shapes, and JSON reading and writing.

Nothing here imports torch, so that commands without a model (search, inspect) start at once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from optin_cli.errors import ArtifactError, problems
from optin_cli.files import looks_like_safetensors, made_by, parse_json
from optin_cli.options.common import MOST_LENGTH, MOST_ROWS

Options = dict[str, JsonValue]
Vector32 = NDArray[np.float32]
Vector64 = NDArray[np.float64]


MOST_UNITS = 1 << 20
"""Most units of a group."""
Side = Annotated[int, Field(ge=1, le=MOST_LENGTH)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]


class Frozen(BaseModel):
    """Immutable record; unknown keys, and numbers that are not finite, are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False)


class Sparse(Frozen):
    """Record that is written without what is None."""

    @model_serializer(mode="wrap")
    def _only_given(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if value is not None}


class DataRecord(Sparse):
    """How calibration data was named and selected, so that it can be read again.

    local: whether it is a file or folder, not the task's own dataset. samples, seed: how many were selected, and by
    which seed. length: tokens of the windows that running text is cut into.
    """

    task: str | None = None
    local: bool = False
    columns: tuple[str, ...] | None = None
    label_column: str | None = None
    labelled: bool = False
    samples: int | None = None
    seed: int = 0
    length: int | None = None


class Source(Sparse):
    """Name and content sha256 of something that an artifact was made from.

    opened_as: the auto class that a checkpoint was opened as, where that is not the class that its config names. path:
    a relative path as the user wrote it, where that says more than the name. data: of calibration, how it was read.
    """

    name: str
    sha256: str
    opened_as: str | None = None
    path: str | None = None
    data: DataRecord | None = None

    @property
    def place(self) -> str:
        """Where it was when the artifact was made, as far as that is known: its path, else its name."""
        return self.path or self.name

    def places(self, *folders: Path) -> list[Path]:
        """Where a local file may lie now: under its path, or its name, in one of these folders, if there is one."""
        written = [path for path in (Path(self.place), Path(self.name)) if not path.is_absolute()]
        found = dict.fromkeys(folder / path for folder in folders for path in written)
        return [path for path in found if path.exists()]

    @property
    def published(self) -> Source:
        """Without paths, as what is passed on to others names it."""
        return self.model_copy(update={"path": None, "data": None})

    def is_same(self, other: Source | None) -> bool:
        """Whether the other has the same name and content, wherever it lies."""
        return other is not None and self.published == other.published


def relative_path(given: str | Path | None, name: str) -> str | None:
    """A path as the user wrote it, if it is relative and says more than the name; None otherwise."""
    if given is None or Path(given).is_absolute():
        return None
    written = Path(given).as_posix()
    return None if written in (name, ".") else written


class Took(Frozen):
    """What a run took: data that it read, in words, its device and threads, wall time, and most memory held.

    peak_device_bytes: of a GPU; None on a CPU.
    """

    data: tuple[str, ...] = ()
    device: str
    threads: int = Field(ge=1)
    seconds: NotNegative
    peak_bytes: Count | None = None
    peak_device_bytes: Count | None = None

    @property
    def lines(self) -> list[str]:
        """It in words, a line for the data and a line for the rest."""
        memory = "" if self.peak_bytes is None else f"; peak memory {self.peak_bytes / 1e9:.2f} GB"
        memory += "" if self.peak_device_bytes is None else f", {self.peak_device_bytes / 1e9:.2f} GB on the GPU"
        data = [f"data: {'; '.join(self.data)}"] if self.data else []
        return [*data, f"took: {self.seconds:.1f} s on {timed_on(self.device, self.threads)}{memory}"]


class Artifact(Frozen):
    """Common fields of every artifact. No timestamps or machine paths: equal runs give equal bytes.

    needs: roles of the inputs that none of its kind lacks. took: what the run took, in what commands print, never in
    the files that they write.
    """

    kind: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    optin_version: str
    options: Options
    inputs: dict[str, Source]
    took: Took | None = None

    @model_validator(mode="after")
    def _has_inputs(self) -> Artifact:
        if missing := [role for role in self.needs if role not in self.inputs]:
            raise ValueError(f"its inputs lack the {missing[0]}")
        return self

    def dump(self) -> str:
        """Format as JSON text ending in a newline."""
        less = {"took"} if self.took is None else set()
        return to_json(self.model_dump(mode="json", by_alias=True, exclude=less)) + "\n"

    def dump_with(self, took: Took) -> str:
        """The same with what the run took."""
        return self.model_copy(update={"took": took}).dump()


class Totals(Frozen):
    """Cost of a whole model. MACs count matrix products, convolutions and attention."""

    macs: int = Field(ge=1)
    parameters: int = Field(ge=1)
    bytes: int = Field(ge=0)


class Workload(Sparse):
    """Input shape that a cost is stated for: `seq_len` tokens, or an image (channels, height, width).

    resized: true where the user asked for another image size than the checkpoint's preprocessing makes.
    """

    batch_size: int = Field(default=1, ge=1, le=MOST_ROWS)
    seq_len: int | None = Field(default=None, ge=1, le=MOST_LENGTH)
    image: tuple[Side, Side, Side] | None = None
    resized: bool | None = None

    @model_validator(mode="after")
    def _check(self) -> Workload:
        if (self.seq_len is None) == (self.image is None):
            raise ValueError("give either seq_len or image")
        return self

    @property
    def shape(self) -> str:
        """The shape of one input in words."""
        if self.image is None:
            return f"{self.seq_len} tokens"
        channels, height, width = self.image
        return f"{height} x {width} pixels" + (f" of {channels} channel(s)" if channels != 3 else "")


def device_type(device: str) -> str:
    """The type of a recorded device: cpu of "cpu (AMD EPYC 7763)" and of "cpu", as early files say."""
    return device.partition(" ")[0]


def timed_on(device: str, threads: int) -> str:
    """What times were measured on, in words: the recorded device and, of a CPU, how many threads were used."""
    counted = f", {threads} thread{'' if threads == 1 else 's'}" if device_type(device) == "cpu" else ""
    return f"{device}{counted}"


def to_json(value: Any) -> str:
    """Format as indented JSON with lists of numbers on one line, so that masks can be read and edited."""

    def render(node: Any, indent: str) -> str:
        deeper = indent + "  "
        if isinstance(node, Mapping) and node:
            rows = ",\n".join(f"{deeper}{json.dumps(str(k))}: {render(v, deeper)}" for k, v in node.items())
            return "{\n" + rows + "\n" + indent + "}"
        if isinstance(node, list) and any(isinstance(item, (dict, list)) for item in node):
            return "[\n" + ",\n".join(deeper + render(item, deeper) for item in node) + "\n" + indent + "]"
        return json.dumps(node, ensure_ascii=False, allow_nan=False)

    return render(value, "")


A = TypeVar("A", bound=Artifact)


def parse(kind: type[A], content: str | bytes, name: str) -> A:
    """Parse and validate JSON text as an artifact of `kind`; all problems are reported together."""
    if isinstance(content, bytes) and looks_like_safetensors(content):
        found = "scores or the weights of a model"
        raise ArtifactError(
            f"{name} is a safetensors file, which holds {found}; expected a {kind.kind} file.", hint=made_by(kind.kind)
        )
    try:
        raw = parse_json(content)
    except ValueError as error:
        raise ArtifactError(f"{name} is not valid JSON: {error}.", hint=f"Expected a {kind.kind} file.") from error
    return validate(kind, raw, name)


def validate(kind: type[A], raw: Any, name: str) -> A:
    """Validate a decoded JSON document as an artifact of `kind`."""
    expected = str(kind.model_fields["schema_"].default)
    found = raw.get("schema") if isinstance(raw, dict) else None
    if found != expected:
        known = re.fullmatch(r"optin\.([a-z]+)/\d+", str(found))
        what = f"a {known[1]} file" if known else "not an optin artifact of that kind"
        raise ArtifactError(
            f"{name} is {what} (schema {found!r}); expected a {kind.kind} file (schema {expected!r}).",
            hint=made_by(kind.kind),
        )
    try:
        return kind.model_validate_json(json.dumps(raw), strict=True)
    except ValidationError as error:
        raise ArtifactError(f"{name} is not a valid {kind.kind} file:\n{problems(error)}") from error


def require_source(artifact: Artifact, artifact_name: str, role: str, found: Source) -> None:
    """Refuse an artifact made from another `role` (checkpoint, scores, …) than the one given (ArtifactError).

    A checkpoint that was opened as another class is another one.
    """
    made_from = artifact.inputs.get(role)
    if made_from is None or made_from.sha256 != found.sha256:
        origin = f"{made_from.name} (sha256 {made_from.sha256[:12]})" if made_from else "something unnamed"
        raise ArtifactError(
            f"{artifact_name} was made from {role} {origin}, but {found.name} (sha256 {found.sha256[:12]}) was given.",
            hint=f"Pass the {role} it was made from, or make the {artifact.kind} again from {found.name}.",
        )
    if made_from.opened_as != found.opened_as:
        flag = f"Pass --as {made_from.opened_as}" if made_from.opened_as else "Leave out --as"
        raise ArtifactError(
            f"{artifact_name} was made from {made_from.name} opened as {_class_words(made_from)}, but {found.name} was "
            f"opened as {_class_words(found)}.",
            hint=f"{flag}, or make the {artifact.kind} again: every command needs the same --as, or none.",
        )


def _class_words(source: Source) -> str:
    return source.opened_as or "the class that its config names"


def require_description(artifact: Artifact, artifact_name: str, found: Source | None, other: str) -> None:
    """Refuse an artifact that was made with another architecture description than the one in use.

    found: the file of that in use, None for the shipped one. other: what uses it, with a verb: "bert was opened".
    """
    made_with = artifact.inputs.get("architecture")
    if (made_with and made_with.sha256) == (found and found.sha256):
        return
    raise ArtifactError(
        f"{artifact_name} was made with {_described(made_with)}, but {other} with {_described(found)}; "
        "the units of the two need not be the same.",
        hint="Give every command the same --architecture file, or none.",
    )


def _described(description: Source | None) -> str:
    if description is None:
        return "the shipped architecture description"
    return f"the architecture description {description.name} (sha256 {description.sha256[:12]})"
