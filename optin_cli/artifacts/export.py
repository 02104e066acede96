"""What is recorded of an exported file, beside it: where it comes from, what it takes and gives, and its certificate.

Nothing here imports torch or a runtime.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from optin_cli.artifacts.base import Artifact, Frozen, Totals, Workload


class TensorRule(Frozen):
    """One input or output: its element type, and its shape, in which a name stands for a dynamic axis."""

    dtype: str
    shape: list[int | str]


class ExportProbe(Frozen):
    """Largest absolute difference of all outputs between the file and the model in memory, for one input shape.

    padded: whether rows end in padding.
    """

    batch_size: int
    seq_len: int | None = None
    padded: bool = False
    difference: float


class ExportCertificate(Frozen):
    """The proof, run in a fresh process by the runtime alone, without optin. difference: the largest of all probes."""

    loader: str
    probes: list[ExportProbe] = Field(min_length=1)
    difference: float
    tolerance: float


class Export(Artifact):
    """`optin export`: what the file it lies beside was made from and computes.

    files: sha256 of the file and of those that hold its weights, by name, the file itself first. takes, gives: its
    tensors by name. reserved_positions: rows of the position table that no token uses. opset: of ONNX.
    """

    kind: ClassVar[str] = "export"
    schema_: Literal["optin.export/1"] = Field(default="optin.export/1", alias="schema")
    target: str
    files: dict[str, str] = Field(min_length=1)
    family: str
    model_class: str
    auto_class: str
    takes: dict[str, TensorRule] = Field(min_length=1)
    gives: dict[str, TensorRule] = Field(min_length=1)
    reserved_positions: int = 0
    opset: int | None
    workload: Workload
    totals: Totals
    certificate: ExportCertificate
    versions: dict[str, str]

    @model_validator(mode="after")
    def _check(self) -> Export:
        outside = [name for name in self.files if "/" in name or "\\" in name or name in ("", ".", "..")]
        if outside:
            raise ValueError(f"{outside[0]!r} is not the name of a file beside the record")
        return self
