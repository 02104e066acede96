"""The record beside an exported file: origin, inputs, outputs and certificate. Imports no torch and no runtime."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from optin_cli.artifacts.base import Artifact, Frozen, Totals, Workload

Name = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
"""Of an input or output: what can be an argument."""


class TensorRule(Frozen):
    """Dtype and shape of one input or output; a name in the shape is a dynamic axis."""

    dtype: str
    shape: list[int | str]


class ExportProbe(Frozen):
    """Largest absolute output difference from the model in memory for one input shape. padded: rows end in padding."""

    batch_size: int
    seq_len: int | None = None
    padded: bool = False
    difference: float


class Continuation(Frozen):
    """What a runtime makes of texts, against the model with its own tokenizer.

    texts: how many both split into the same tokens. tokens: that were generated greedily, over all prompts; agreed:
    of these, how many are the model's, up to the first of each prompt that is not.
    """

    texts: int
    tokens: int
    agreed: int


class ExportCertificate(Frozen):
    """Proof by the runtime in a fresh process without optin.

    difference: the largest over all probes. tolerance: most that was allowed; None where weights are stored less
    exactly, which is measured, not proved. continuation: where the runtime has the tokenizer too.
    """

    loader: str
    probes: list[ExportProbe] = Field(min_length=1)
    difference: float
    tolerance: float | None
    continuation: Continuation | None = None


class Export(Artifact):
    """`optin export`: record of the file that it lies beside.

    files: sha256 by name of the file (first) and of the files that hold its weights. takes, gives: input and output
    tensors by name. reserved_positions: rows of the position table that no token uses. opset: ONNX opset version.
    unquantized: certificate of the float32 file that one with less exact weights was made from.
    """

    kind: ClassVar[str] = "export"
    schema_: Literal["optin.export/1"] = Field(default="optin.export/1", alias="schema")
    target: str
    files: dict[str, str] = Field(min_length=1)
    family: str
    model_class: str
    auto_class: str
    takes: dict[Name, TensorRule] = Field(min_length=1)
    gives: dict[Name, TensorRule] = Field(min_length=1)
    reserved_positions: int = 0
    opset: int | None
    workload: Workload
    totals: Totals
    certificate: ExportCertificate
    unquantized: ExportCertificate | None = None
    versions: dict[str, str]

    @model_validator(mode="after")
    def _check(self) -> Export:
        outside = [name for name in self.files if "/" in name or "\\" in name or name in ("", ".", "..")]
        if outside:
            raise ValueError(f"{outside[0]!r} is not the name of a file beside the record")
        return self
