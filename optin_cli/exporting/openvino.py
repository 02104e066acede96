"""OpenVINO: write a traced model by way of ONNX (NAME.xml with its weights in NAME.bin), and run it."""

import tempfile
from pathlib import Path

from optin_cli.exporting import onnx as for_onnx
from optin_cli.exporting.registry import ExportError, Quantizer, Run, Target, Traced


def write(traced: Traced, path: Path, _opset: int | None) -> None:
    """Translate to ONNX and from there; weights stay float32."""
    import openvino

    with tempfile.TemporaryDirectory() as scratch:
        between = Path(scratch) / f"{path.stem}{for_onnx.TARGET.suffix}"
        for_onnx.write(traced, between, None)
        try:
            model = openvino.Core().read_model(between)
            openvino.save_model(model, path, compress_to_fp16=False)
        except RuntimeError as error:
            lines = str(error).strip().splitlines()
            raise ExportError(f"OpenVINO does not translate this model: {lines[-1] if lines else error}") from error


def quantize(source: Path, path: Path) -> None:
    """Store the weights of matrix products and embeddings as int8 by NNCF, each output channel with a scale of its own.

    Activations and sums stay float32.
    """
    import nncf
    import openvino

    model = openvino.Core().read_model(source)
    compressed = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
    openvino.save_model(compressed, path, compress_to_fp16=False)


def store_half(source: Path, path: Path) -> None:
    """Store weights in float16; the CPU computes in float32."""
    import openvino

    openvino.save_model(openvino.Core().read_model(source), path, compress_to_fp16=True)


def open_file(path: str, threads: int) -> Run:
    """The model compiled for the CPU, in float32 also where the processor would rather use bfloat16."""
    import openvino

    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.Core().compile_model(path, "CPU", settings)
    names = [output.get_any_name() for output in model.outputs]

    def run(inputs):  # type: ignore[no-untyped-def]
        outputs = model(dict(inputs))
        return {name: outputs[name] for name in names}

    return run


TARGET = Target(
    name="openvino",
    suffix=".xml",
    extra="openvino",
    writes_with=("openvino", *for_onnx.TARGET.writes_with),
    runs_with=("openvino",),
    write=write,
    open=open_file,
    int8=Quantizer(needs=("nncf",), extra="int8", file=quantize),
    half=store_half,
)
