"""Files with weights in float16: half as large, exact where the checkpoint stores float16, refused elsewhere."""

from pathlib import Path

import numpy
import pytest
from helpers.models import save_checkpoint
from helpers.running import done
from safetensors.torch import load_file, save_file

from optin_cli.artifacts.base import parse
from optin_cli.artifacts.export import Export


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A checkpoint that stores float16, and its files of both types; what the commands said."""
    root = tmp_path_factory.mktemp("half")
    folder = save_checkpoint(root / "bert", max_position_embeddings=160)
    path = folder / "model.safetensors"
    save_file({name: t.half() for name, t in load_file(path).items()}, path, metadata={"format": "pt"})
    said = [done("export", folder, "--to", "onnx", *more, "-o", root / "files").err for more in ((), HALF)]
    return root / "files", said


HALF = ("--dtype", "float16")


def record_of(path):
    return parse(Export, Path(f"{path}.optin.json").read_bytes(), "record")


def test_a_file_that_is_larger_than_the_weights_is_pointed_out(exported):
    plain, half = exported[1]
    assert "larger than the stored weights" in plain and "--dtype float16" in plain
    assert "larger than" not in half


def test_weights_are_half_as_large_and_the_same(exported):
    import onnx

    folder, _ = exported
    half, whole = folder / "model.float16.onnx", folder / "model.onnx"
    assert half.stat().st_size < 0.7 * whole.stat().st_size
    types = {onnx.numpy_helper.to_array(t).dtype for t in onnx.load(half).graph.initializer if len(t.dims) > 1}
    assert numpy.dtype("float16") in types and numpy.dtype("float32") not in types
    record = record_of(half)
    assert record.options == {"dtype": "float16"} and record.unquantized == record_of(whole).certificate
    assert record.certificate.difference <= record.unquantized.tolerance, "the checkpoint stores float16 itself"
    onnx.checker.check_model(onnx.load(half))


def test_what_float16_cannot_hold_stays(tmp_path):
    import onnx

    from optin_cli.exporting.onnx import store_half

    large, small = numpy.full((2, 2), 1e6, numpy.float32), numpy.eye(2, dtype=numpy.float32)
    tensors = [onnx.numpy_helper.from_array(array, name) for array, name in ((large, "large"), (small, "small"))]
    node = onnx.helper.make_node("MatMul", ["large", "small"], ["y"])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2, 2])
    graph = onnx.helper.make_graph([node], "g", [], [y], tensors)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)]), tmp_path / "a.onnx")
    store_half(tmp_path / "a.onnx", tmp_path / "b.onnx")
    stored = {t.name: onnx.numpy_helper.to_array(t).dtype for t in onnx.load(tmp_path / "b.onnx").graph.initializer}
    assert stored == {"large": numpy.dtype("float32"), "small.float16": numpy.dtype("float16")}
