"""Options of an export."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ExportOptions:
    """Constants of an export.

    opset: version of ONNX operators, None for the exporter's own choice. seq_len: length of text that MACs are
    recorded for, None for 128 tokens or what the model holds.
    """

    opset: int | None = None
    seq_len: int | None = None
