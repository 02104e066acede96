"""Options of export."""

from dataclasses import dataclass
from typing import Literal, get_args

from optin_cli.errors import UsageError
from optin_cli.options.common import SEQ_LEN
from optin_cli.options.declare import Checked, option, shared

WeightType = Literal["f16", "f32", "q8_0"]
DType = Literal["float32", "float16"]
WEIGHT_TYPES: tuple[WeightType, ...] = get_args(WeightType)


@dataclass(frozen=True)
class ExportOptions(Checked):
    """Options of an export.

    opset: version of ONNX operators, None for the exporter's own. seq_len: that costs are stated for, None for 128
    or what the model holds. int8: store weights as 8-bit integers. weight_type: of weights, by llama.cpp's names, None
    for f16. dtype: of weights as a file stores them.
    """

    opset: int | None = option(None, "--opset", "Version of ONNX operators.", metavar="N", unset="the exporter's")
    seq_len: int | None = shared(None, SEQ_LEN)
    int8: bool = option(False, "--int8", "Store weights as 8-bit integers: a quarter of the bytes.")
    dtype: DType = option(
        "float32",
        "--dtype",
        "Type that ONNX and OpenVINO files store weights in; they compute in float32.",
        choices=get_args(DType),
    )
    weight_type: WeightType | None = option(
        None, "--gguf-type", "Type of weights in GGUF.", choices=WEIGHT_TYPES, unset="f16"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.int8 and self.dtype != "float32":
            raise UsageError(f"--int8 and --dtype {self.dtype} exclude each other.", hint="Leave out one of them.")
