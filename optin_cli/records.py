"""What every artifact is made of: its common head, the shapes and totals that costs are stated by, and its JSON text.

Nothing here imports torch, so that stages without a model (search, inspect) start at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import (
    BaseModel,
    ConfigDict,
    JsonValue,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

Options = dict[str, JsonValue]


class Frozen(BaseModel):
    """Immutable record; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Source(Frozen):
    """What an artifact was made from: a display name and the sha256 of its content."""

    name: str
    sha256: str


class Artifact(Frozen):
    """Common head of every artifact. Holds no timestamps and no machine paths: equal runs, equal bytes."""

    kind: ClassVar[str]
    optin_version: str
    options: Options
    inputs: dict[str, Source]

    def dump(self) -> str:
        """Indented JSON text ending in a newline, lists of numbers on one line each."""
        return to_json(self.model_dump(mode="json", by_alias=True)) + "\n"


class Totals(Frozen):
    """Whole-model cost. MACs are multiply-accumulates of matrix products, convolutions and attention."""

    macs: int
    parameters: int
    bytes: int


class Workload(Frozen):
    """The input shape that a cost is stated for: sequences of `seq_len` tokens, or images (channels, height, width)."""

    batch_size: int = 1
    seq_len: int | None = None
    image: tuple[int, int, int] | None = None

    @model_validator(mode="after")
    def _check(self) -> Workload:
        if (self.seq_len is None) == (self.image is None):
            raise ValueError("give either seq_len or image")
        return self

    @model_serializer(mode="wrap")
    def _only_given(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if value is not None}

    @property
    def shape(self) -> str:
        """The shape of one input, in words."""
        if self.image is None:
            return f"{self.seq_len} tokens"
        channels, height, width = self.image
        return f"{height} x {width} pixels" + (f" of {channels} channel(s)" if channels != 3 else "")


def to_json(value: Any) -> str:
    """Indented JSON whose lists of plain numbers stay on one line, so that masks can be read and edited."""

    def render(node: Any, indent: str) -> str:
        deeper = indent + "  "
        if isinstance(node, Mapping) and node:
            rows = ",\n".join(f"{deeper}{json.dumps(str(k))}: {render(v, deeper)}" for k, v in node.items())
            return "{\n" + rows + "\n" + indent + "}"
        if isinstance(node, list) and any(isinstance(item, (dict, list)) for item in node):
            return "[\n" + ",\n".join(deeper + render(item, deeper) for item in node) + "\n" + indent + "]"
        return json.dumps(node, ensure_ascii=False, allow_nan=False)

    return render(value, "")
