"""ONNX: write a traced model (weights in NAME.data where they exceed one file), and run it in onnxruntime."""

from pathlib import Path
from typing import Any

from optin_cli.errors import headline
from optin_cli.exporting.registry import FLOAT16, ExportError, Quantizer, Run, Target, Traced

MOST_BYTES = 1_900_000_000
"""A protobuf message holds less than 2 GiB; beyond this, weights go into a file of their own."""


def write(traced: Traced, path: Path, opset: int | None) -> int:
    """Translate by torch's own exporter; axes are named, and traces of the machine it ran on are dropped."""
    import torch

    try:
        found = torch.onnx.export(
            traced.program,
            dynamo=True,
            input_names=list(traced.takes),
            output_names=list(traced.gives),
            opset_version=opset,
            verbose=False,
        )
    except torch.onnx.errors.OnnxExporterError as error:
        raise ExportError(
            f"torch does not translate this model to ONNX: {_cause(error)}",
            hint="Try another --opset, or --to torch-export, which needs no translation.",
        ) from error
    if found is None:
        raise ExportError("torch.onnx.export gave nothing back.")
    model: Any = found.model
    names = {value.shape[axis]: name for value in model.graph.inputs for axis, name in traced.axes[value.name].items()}
    found.rename_axes(names)
    _forget_machine(model)
    weights = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    found.save(path, external_data=weights > MOST_BYTES)
    return int(model.opset_imports[""])


def _cause(error: BaseException) -> str:
    """The first line of the root cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    return headline(error)


def _forget_machine(model: Any) -> None:
    """Drop what the exporter notes of Python modules and lines, which are paths of this machine."""
    for graph in model.graphs():
        for item in (graph, *graph, *graph.inputs, *graph.initializers.values()):
            item.metadata_props.clear()
        for node in graph:
            for output in node.outputs:
                output.metadata_props.clear()
    for function in model.functions.values():
        function.metadata_props.clear()


def quantize(source: Path, path: Path) -> None:
    """Store the weights of matrix products and embeddings as int8, each output channel with a scale of its own.

    Activations are quantized as they come (dynamic quantization). Products of 8 and 7 bits cannot overflow the 16-bit
    sums of processors without VNNI, hence the reduced range.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    large = source.stat().st_size > MOST_BYTES or any(source.parent.glob(f"{source.name}.data"))
    quantize_dynamic(
        source,
        path,
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=True,
        use_external_data_format=large,
    )


def store_half(source: Path, path: Path) -> None:
    """Store matrices, embeddings and kernels in float16, each with a node that makes it float32 as the file is opened.

    Exact where the checkpoint stores float16. What float16 cannot hold stays as it is.
    """
    import numpy as np
    import onnx

    model = onnx.load(source)
    kept, casts = [], []
    for tensor in model.graph.initializer:
        half = None
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) > 1:
            values = onnx.numpy_helper.to_array(tensor)
            if float(np.abs(values).max(initial=0.0)) <= float(np.finfo(np.float16).max):
                half = onnx.numpy_helper.from_array(values.astype(np.float16), f"{tensor.name}.{FLOAT16}")
        if half is not None:
            casts.append(onnx.helper.make_node("Cast", [half.name], [tensor.name], to=onnx.TensorProto.FLOAT))
        kept.append(tensor if half is None else half)
    nodes = [*casts, *model.graph.node]
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend(kept)
    model.graph.node.extend(nodes)
    large = sum(len(tensor.raw_data) for tensor in kept) > MOST_BYTES
    onnx.save_model(model, path, save_as_external_data=large, location=f"{path.name}.data" if large else None)


def open_file(path: str, threads: int) -> Run:
    """A session on the CPU; arrays in and out are numpy's."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Threads that spin while they wait would slow down whatever runs between two runs of this session.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(inputs):  # type: ignore[no-untyped-def]
        return dict(zip(names, session.run(names, dict(inputs)), strict=True))

    return run


TARGET = Target(
    name="onnx",
    suffix=".onnx",
    extra="onnx",
    writes_with=("onnx", "onnxscript"),
    runs_with=("onnxruntime",),
    write=write,
    open=open_file,
    opsets=(18, 23),
    int8=Quantizer(file=quantize),
    half=store_half,
)
