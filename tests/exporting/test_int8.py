"""Files with 8-bit weights: made from a certified float32 file, smaller, evaluated as any other, refused elsewhere."""

import zipfile
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
from helpers.running import call, done, tree

from optin_cli.artifacts.base import parse
from optin_cli.artifacts.evaluation import Evaluation
from optin_cli.artifacts.export import Export
from optin_cli.exporting import onnx as for_onnx
from optin_cli.exporting.registry import Quantizer


@pytest.fixture(scope="module")
def exported(made, tmp_path_factory):
    """A folder with the float32 and the int8 file of the session's checkpoint. To be read only."""
    folder = tmp_path_factory.mktemp("int8") / "files"
    done("export", made.bert, "--to", "onnx", "-o", folder)
    run = done("export", made.bert, "--to", "onnx", "--int8", "-o", folder)
    assert run.out == f"{folder}/model.int8.onnx\n"
    assert "so far in float32; with weights in int8 they differ by" in run.err
    return folder


def record_of(path):
    return parse(Export, Path(f"{path}.optin.json").read_bytes(), "record")


def test_the_record_tells_the_proof_of_float32_from_the_measure_of_int8(exported):
    record, float32 = record_of(exported / "model.int8.onnx"), record_of(exported / "model.onnx")
    assert record.options == {"int8": True}
    assert record.unquantized == float32.certificate
    assert record.certificate.tolerance is None
    assert record.certificate.difference > float32.certificate.tolerance
    assert float32.unquantized is None
    assert record.takes == float32.takes and record.gives == float32.gives


def test_weights_are_stored_as_bytes(exported):
    import onnx

    stored = onnx.load(exported / "model.int8.onnx").graph.initializer
    matrices = [onnx.numpy_helper.to_array(tensor) for tensor in stored if len(tensor.dims) == 2]
    assert any(matrix.dtype == numpy.int8 for matrix in matrices)
    assert not any(matrix.dtype == numpy.float32 for matrix in matrices)


def test_outputs_stay_close_on_real_texts(exported, made):
    data = ("--task", "sst2", "--data", made.train, "--latency-runs", "0", "--json")
    run = done("eval", exported / "model.int8.onnx", *data, "--against", exported / "model.onnx")
    result = parse(Evaluation, run.out.encode(), "stdout")
    assert result.against.kl < 0.01
    assert result.totals.bytes < result.against.bytes_ratio * 1.01 * (exported / "model.onnx").stat().st_size


def test_a_file_that_gives_no_numbers_is_not_written(made, here, monkeypatch):
    import onnx

    def spoil(source, path):
        model = onnx.load(source)
        for tensor in model.graph.initializer:
            if tensor.data_type == onnx.TensorProto.FLOAT:
                spoiled = numpy.full_like(onnx.numpy_helper.to_array(tensor), numpy.nan)
                tensor.CopyFrom(onnx.numpy_helper.from_array(spoiled, tensor.name))
        onnx.save(model, path)

    monkeypatch.setattr(for_onnx, "TARGET", replace(for_onnx.TARGET, int8=Quantizer(file=spoil)))
    run = call("export", made.bert, "--to", "onnx", "--int8", "-o", "spoiled")
    assert run.code == 1 and "not numbers" in run.err
    assert tree(here) == {}


def weight_bytes(path):
    if path.suffix == ".xml":
        return path.with_suffix(".bin").stat().st_size
    with zipfile.ZipFile(path) as archive:
        return sum(item.file_size for item in archive.infolist() if "/weights/weight_" in item.filename)


@pytest.mark.parametrize(
    ("target", "package", "suffix"), [("torch-export", "torchao", "pt2"), ("openvino", "nncf", "xml")]
)
def test_other_targets_store_bytes_too(made, here, target, package, suffix):
    for needed in (package, *(["openvino"] if target == "openvino" else [])):
        pytest.importorskip(needed)
    done("export", made.bert, "--to", target, "-o", "files")
    done("export", made.bert, "--to", target, "--int8", "-o", "files")
    small, whole = (record_of(here / "files" / f"model{kind}.{suffix}") for kind in (".int8", ""))
    assert small.unquantized == whole.certificate and small.certificate.tolerance is None
    assert package in small.versions and package not in whole.versions
    assert weight_bytes(here / "files" / f"model.int8.{suffix}") < weight_bytes(here / "files" / f"model.{suffix}")
    data = ("--task", "sst2", "--data", made.train, "--latency-runs", "0", "--json")
    run = done("eval", f"files/model.int8.{suffix}", *data, "--against", f"files/model.{suffix}")
    assert parse(Evaluation, run.out.encode(), "stdout").against.kl < 0.01


def test_packages_that_are_missing_are_named_with_their_extra(made, here, monkeypatch):
    lacking = replace(for_onnx.TARGET, int8=Quantizer(needs=("no_such_quantizer",), extra="int8"))
    monkeypatch.setattr(for_onnx, "TARGET", lacking)
    run = call("export", made.bert, "--to", "onnx", "--int8", "-o", "out")
    assert run.code == 1 and "onnx with --int8 needs no_such_quantizer" in run.err and "optin-cli[int8]" in run.err
    assert tree(here) == {}
