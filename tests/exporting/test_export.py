"""Exported files: certified, evaluated in their own runtimes, on their own, and refused when anything is amiss."""

import json
import pickle
import re
import shutil
import zipfile
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from helpers.models import make_inputs, random_kept, save_checkpoint, save_images, side_of
from helpers.running import call, done, run_cli, tree

import optin_cli
from optin_cli.artifacts.base import parse
from optin_cli.artifacts.evaluation import Evaluation
from optin_cli.artifacts.export import Export
from optin_cli.checkpoints.checkpoint import load as load_checkpoint
from optin_cli.errors import CertificateError, UsageError
from optin_cli.exporting import torch_export as for_torch_export
from optin_cli.exporting.load import load_evaluated
from optin_cli.exporting.registry import ExportError
from optin_cli.files import sha256_of
from optin_cli.pruning.prune import cut_copy

SIZES = ("--latency-runs", "0")
needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="needs openvino")
TARGETS = ["onnx", "torch-export", pytest.param("openvino", marks=needs_openvino)]


@pytest.fixture(scope="module")
def exported(made, tmp_path_factory):
    """A copy of the pruned folder with its ONNX and torch.export files in it. To be read only."""
    folder = tmp_path_factory.mktemp("exported") / "small"
    shutil.copytree(made.pruned, folder)
    before = tree(folder)
    for target, name in (("onnx", "model.onnx"), ("torch-export", "model.pt2")):
        result = done("export", folder, "--to", target)
        assert result.out == f"{folder}/{name}\n"
        assert "certified" in result.err
    after = tree(folder)
    new = {"model.onnx", "model.onnx.optin.json", "model.pt2", "model.pt2.optin.json"}
    assert set(after) - set(before) == new
    assert {name: after[name] for name in before} == before
    return folder


@pytest.fixture
def small(exported, here):
    """The exported folder, in a working directory, to be changed."""
    shutil.copytree(exported, here / "small")
    return here / "small"


def record_of(path):
    return parse(Export, Path(f"{path}.optin.json").read_text(), "record")


def cut_checkpoint(folder, family, kept=None, **options):
    """A checkpoint whose model is cut, in memory."""
    save = save_images if family.startswith(("timm", "vit", "beit", "segformer")) else save_checkpoint
    checkpoint = load_checkpoint(save(folder, family, **options))
    model, _ = cut_copy(checkpoint, random_kept(checkpoint.structure) | (kept or {}))
    return replace(checkpoint, model=model)


# What is written


@pytest.mark.parametrize("name", ["model.onnx", "model.pt2"])
def test_records_say_what_a_file_takes_gives_and_was_made_from(exported, made, name):
    record = record_of(exported / name)
    assert list(record.files) == [name]
    assert record.inputs["checkpoint"].sha256 == load_checkpoint(made.pruned).sha256
    assert record.takes["input_ids"].shape == record.takes["attention_mask"].shape == ["batch", "length"]
    assert record.gives["logits"].shape == ["batch", 2]
    manifest = json.loads((exported / "optin.json").read_text())
    assert (record.totals.macs, record.totals.parameters) == (
        manifest["after"]["macs"],
        manifest["after"]["parameters"],
    )
    certificate = record.certificate
    assert certificate.difference == max(p.difference for p in certificate.probes) <= certificate.tolerance
    assert {(p.batch_size == 1, p.padded) for p in certificate.probes} >= {(True, False), (True, True), (False, True)}
    text = done("inspect", exported / f"{name}.optin.json").out
    assert "input_ids" in text and "batch x length" in text


def test_a_pruned_folder_stays_what_it_was(exported, made):
    assert load_checkpoint(exported).source.sha256 == load_checkpoint(made.pruned).source.sha256


def test_onnx_needs_nothing_but_its_runtime(exported, here):
    import onnxruntime

    session = onnxruntime.InferenceSession(exported / "model.onnx", providers=["CPUExecutionProvider"])
    assert [(i.name, i.shape) for i in session.get_inputs()] == [
        ("input_ids", ["batch", "length"]),
        ("attention_mask", ["batch", "length"]),
    ]
    assert [(o.name, o.shape) for o in session.get_outputs()] == [("logits", ["batch", 2])]
    model = optin_cli.load(exported).model
    for rows, tokens, padding in ((1, 2, 0), (2, 31, 5), (5, 128, 100), (1, 9, 7)):
        inputs = make_inputs(rows, tokens, padding=padding)
        inputs["input_ids"] = inputs["input_ids"] % 28
        with torch.no_grad():
            expected = model(**inputs).logits
        found = session.run(["logits"], {name: tensor.numpy() for name, tensor in inputs.items()})[0]
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-5)


# Evaluation


@pytest.mark.parametrize("name", ["model.onnx", "model.pt2"])
def test_evaluation_in_its_own_runtime(exported, made, here, name):
    threads = torch.get_num_threads()
    try:
        args = ("--task", "sst2", "--data", made.train, "--latency-runs", "2", "--threads", "1", "--json")
        found = parse(Evaluation, done("eval", exported / name, *args, "--against", made.pruned).out, "stdout")
    finally:
        torch.set_num_threads(threads)
    theirs = parse(Evaluation, done("eval", made.pruned, *args[:4], *SIZES, "--json").out, "stdout")
    assert found.metrics == theirs.metrics and found.standard_error == theirs.standard_error
    assert found.against.agreement == 1.0 and found.against.drop == 0
    assert found.against.macs_ratio == found.against.parameters_ratio == 1
    assert found.totals.bytes == (exported / name).stat().st_size
    assert found.latency.runtime.startswith("onnxruntime" if name.endswith("onnx") else "torch")
    assert found.against.runtime == "torch" and found.against.latency_ratio > 0
    assert found.inputs["checkpoint"].name == f"small/{name}"


def test_evaluation_of_two_exported_files(exported, made, here):
    names = (exported / "model.onnx", "--against", exported / "model.pt2")
    result = done("eval", *names, "--data", made.texts, "--latency-runs", "1", "-o", "e.json")
    assert all(word in result.err for word in ("onnxruntime", "small/model.pt2", "agreement"))
    assert done("inspect", "e.json").out.count("runtime") >= 1
    found = optin_cli.evaluate(exported / "model.pt2", "sst2", data=made.train, against=made.bert)
    assert found.against.macs_ratio < 0.7


@pytest.mark.parametrize("target", TARGETS)
def test_a_folder_of_its_own_stands_alone(exported, made, here, target):
    """Into a new folder, the checkpoint gone, moved, and evaluated by its file; equal runs give equal bytes."""
    shutil.copytree(exported, "small")
    if target == "onnx":
        result = run_cli("export", "small", "--to", target, "-o", "out/", cwd=here)
        talk = [line for line in result.stderr.splitlines() if " MACs (" not in line]
        assert result.returncode == 0, result.stderr
        assert all(line.startswith(("certified by ", "took: ", "next: ")) for line in talk), f"noisy: {result.stderr}"
        output = result.stdout
    else:
        output = done("export", "small", "--to", target, "-o", "out/").out
    file = Path(output.strip())
    assert output == f"out/{file.name}\n"
    for name in (file.name, f"{file.name}.optin.json"):
        content = Path("out", name).read_bytes()
        assert b"site-packages" not in content and str(here).encode() not in content, "paths of this machine"
        assert target == "openvino" or content == (exported / name).read_bytes()
    shutil.rmtree("small")
    Path("out").rename("moved")
    assert {"config.json", "tokenizer.json"} <= {p.name for p in Path("moved").iterdir()}
    assert not list(Path("moved").glob("*.safetensors"))
    args = ("--task", "sst2", "--data", made.train, "--latency-runs", "1", "--json")
    found = parse(Evaluation, done("eval", f"moved/{file.name}", *args).out, "stdout")
    assert found.metrics == parse(Evaluation, made.evaluation.read_text(), "evaluation").metrics


def test_a_state_dict_gets_a_folder_named_after_it(made, here):
    shutil.copyfile(made.bert / "model.safetensors", "weights.safetensors")
    result = done("export", "weights.safetensors", "--arch", made.bert, "--to", "torch-export", "--seq-len", "32")
    assert result.out == "weights-torch-export/model.pt2\n"
    record = record_of("weights-torch-export/model.pt2")
    assert record.workload.seq_len == 32
    assert done("eval", "weights-torch-export/model.pt2", *SIZES).out == "model.pt2.eval.json\n"
    wrong = call("eval", "weights-torch-export/model.pt2", *SIZES, "--seq-len", "16", "--force")
    assert wrong.code == 2 and "recorded for 32 tokens" in wrong.err


# Kinds of models

CASES = [
    ("deberta-v2", "base", "torch-export", {"encoder.0.head": [], "encoder.1.neuron": []}),
    ("roberta", "answers", "onnx", {"encoder.0.head": [], "encoder.2.neuron": []}),
    ("beit-shared", None, "torch-export", {}),
    ("vit", None, "onnx", {}),
    ("timm-dinov2", None, "onnx", {}),
    ("segformer", None, "onnx", {}),
]


@pytest.mark.parametrize(("family", "head", "target", "kept"), CASES, ids=[f"{c[0]}-{c[2]}" for c in CASES])
def test_exported_pruned_models_compute_the_same(tmp_path, family, head, target, kept):
    options = {} if head is None else {"head": head}
    checkpoint = cut_checkpoint(tmp_path / "whole", family, kept, **options)
    record = optin_cli.export(checkpoint, target, tmp_path / "out")
    opened = load_evaluated(tmp_path / "out" / next(iter(record.files)))
    assert (
        opened.blueprint.num_labels == checkpoint.blueprint.num_labels
        and opened.structure.outputs == checkpoint.structure.outputs
    )
    if checkpoint.blueprint.image is None:
        inputs = make_inputs(2, 21)
        assert set(record.takes) == {"input_ids", "attention_mask"}
        assert opened.input.most == checkpoint.input.most
    else:
        side = side_of(checkpoint.model)
        inputs = {checkpoint.blueprint.image.input_name: torch.randn(4, 3, side, side)}
        assert record.takes[checkpoint.blueprint.image.input_name].shape == ["batch", 3, side, side]
        from PIL import Image

        assert opened.input.preprocess()(Image.new("RGB", (40, 30))).shape == (3, side, side)
    with torch.no_grad():
        raw = checkpoint.model(**inputs)
    expected = {"logits": raw} if isinstance(raw, torch.Tensor) else raw
    found = opened.model(**inputs)
    assert list(found) == list(record.gives)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-4)


def test_segments_of_pairs_are_an_input_where_the_tokenizer_gives_them(tmp_path):
    from helpers.models import tiny_tokenizer

    folder = save_checkpoint(tmp_path / "pairs")
    names = ["input_ids", "token_type_ids", "attention_mask"]
    tiny_tokenizer(model_input_names=names).save_pretrained(folder)
    record = optin_cli.export(folder, "torch-export")
    assert set(record.takes) == set(names)
    opened, model = load_evaluated(folder / "model.pt2").model, optin_cli.load(folder).model
    inputs = make_inputs(2, 9)
    types = {"token_type_ids": (torch.arange(9) > 4).long().repeat(2, 1)}
    for given in (inputs, inputs | types):
        torch.testing.assert_close(opened(**given)["logits"], model(**given).logits, rtol=1e-4, atol=1e-4)


def test_a_file_exported_at_another_image_size_keeps_it(tmp_path):
    folder = save_images(tmp_path / "convnext", "timm-convnext")
    record = optin_cli.export(load_checkpoint(folder, image_size=(64, 96)), "torch-export", tmp_path / "out")
    opened = load_evaluated(tmp_path / "out" / next(iter(record.files)))
    assert opened.input.workload() == record.workload and record.workload.image == (3, 64, 96)
    from PIL import Image

    assert opened.input.preprocess()(Image.new("RGB", (40, 30))).shape == (3, 64, 96)
    assert load_evaluated(tmp_path / "out" / next(iter(record.files)), image_size=(64, 96)).name == opened.name
    with pytest.raises(UsageError, match="was exported for 64 x 96 pixels"):
        load_evaluated(tmp_path / "out" / next(iter(record.files)), image_size=(32, 32))


# What fails


def test_a_file_that_computes_something_else_is_not_written(small, monkeypatch):
    def write(traced, path, opset):
        weights = traced.program.state_dict
        for name, tensor in weights.items():
            if isinstance(tensor, torch.nn.Parameter):
                weights[name] = torch.nn.Parameter(tensor * 1.01, requires_grad=False)
        return for_torch_export.write(traced, path, opset)

    monkeypatch.setattr(for_torch_export, "TARGET", replace(for_torch_export.TARGET, write=write))
    before = tree(small)
    checkpoint = load_checkpoint(small)
    with pytest.raises(CertificateError, match="differ by"):
        optin_cli.export(checkpoint, "torch-export", small, force=True)
    assert tree(small) == before
    with pytest.raises(CertificateError):
        optin_cli.export(load_checkpoint(small), "torch-export", "new")
    assert not Path("new").exists() and not list(Path().glob(".new*"))


def test_a_model_without_free_axes_is_refused(small, monkeypatch):
    checkpoint = load_checkpoint(small)
    forward = checkpoint.model.forward

    def branching(input_ids, attention_mask):
        if int(input_ids.sum()) > 3:
            return forward(input_ids, attention_mask)
        return forward(input_ids)

    def fixed(input_ids, attention_mask):
        return forward(input_ids[:, :17].reshape(3, 17), attention_mask)

    for broken in (branching, fixed):
        monkeypatch.setattr(checkpoint.model, "forward", broken)
        with pytest.raises(ExportError, match="with a free batch size and length"):
            optin_cli.export(checkpoint, "torch-export", "new")
        assert not Path("new").exists()


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["small", "--to", "onx"], 2, ["'onx'", "Did you mean onnx", "torch-export"]),
        (["small"], 2, ["--to"]),
        (["small", "--to", "onnx", "--opset", "99", "--force"], 2, ["opset 99", "18 to"]),
        (["small", "--to", "torch-export", "--opset", "18", "--force"], 2, ["no opsets"]),
        (["small", "--to", "onnx"], 1, ["small/model.onnx already exists", "--force"]),
        (["small", "--to", "onnx", "-o", "small/model.pt2"], 1, ["small/model.pt2", "not a folder"]),
        (["small", "--to", "onnx", "-o", "-"], 2, ["stdout"]),
        (["small", "--to", "onnx", "-o", "no/such/model.onnx"], 1, ["no", "does not exist"]),
        (["small/model.onnx", "--to", "torch-export", "-o", "x"], 1, [".onnx file", "checkpoint folder"]),
        (["small", "--to", "onnx", "-o", "x", "--seq-len", "4000"], 2, ["4000"]),
        (["nothing", "--to", "onnx"], 1, ["nothing"]),
        (["small", "--to", "torch-export", "-o", "{other}"], 1, ["another checkpoint's config.json", "-o"]),
    ],
)
def test_exports_that_cannot_be_are_refused(small, made, args, code, words):
    shutil.copytree(made.other, "other")
    before = tree(Path())
    result = call("export", *[arg.format(other="other") for arg in args])
    assert (result.code, result.out) == (code, "")
    assert all(word in result.err for word in words), result.err
    assert tree(Path()) == before


@pytest.mark.parametrize(
    ("args", "missing", "extra"),
    [
        (["export", "small", "--to", "onnx", "-o", "x"], "onnxscript", "onnx"),
        (["export", "small", "--to", "openvino", "-o", "x"], "openvino", "openvino"),
        (["eval", "small/model.onnx"], "onnxruntime", "onnx"),
    ],
)
def test_missing_packages_are_named_with_their_extra(small, monkeypatch, args, missing, extra):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == missing else find_spec(name))
    result = call(*args)
    assert result.code == 1
    assert missing in result.err and f'pip install "optin-cli[{extra}]"' in result.err


def repack(path, name, change):
    """Replace one member of an archive, and write the record anew as someone who means harm would."""
    with zipfile.ZipFile(path) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    old = sha256_of(path)
    (root,) = {member.partition("/")[0] for member in members}
    members[f"{root}/{name}"] = change(members.get(f"{root}/{name}", b""))
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    record = Path(f"{path}.optin.json")
    record.write_text(record.read_text().replace(old, sha256_of(path)))


class Harmful:
    def __reduce__(self):
        return Path.touch, (Path("harmed"),)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (
            "data/constants/model_constants_config.json",
            lambda c: c.replace(b'"use_pickle": false', b'"use_pickle": true'),
        ),
        ("data/weights/model_weights_config.json", lambda c: c.replace(b'"use_pickle": false', b'"use_pickle": true')),
        ("data/constants/custom_obj_0", lambda _: pickle.dumps(Harmful())),
        ("data/sample_inputs/model.pt", lambda _: pickle.dumps(Harmful())),
        ("data/aotinductor/model/model.so", lambda _: b"code"),
        ("models/model.json", lambda c: re.sub(rb'"expr_str": ?"[^"]*"', b'"expr_str": "open(1)"', c)),
        ("models/model.json", lambda c: c.replace(b"L['attention_mask'].size()[0]", b"open('harmed', 'w').tell()")),
        ("models/model.json", lambda c: c.replace(b'"name": "bias"', b'"name": "bias=open(1), x"')),
        ("models/model.json", lambda c: c.replace(b"aten.tanh.default", b"aten.from_file.default")),
        ("models/model.json", lambda c: c.replace(b"torch.ops.aten.tanh.default", b"torch.hub.load")),
        ("models/model.json", lambda c: c.replace(b"builtins.tuple", b"os.path")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_archives_that_could_run_code_are_refused(small, name, change):
    repack(small / "model.pt2", name, change)
    result = call("eval", "small/model.pt2", *SIZES)
    assert result.code == 1 and "refused" in result.err, result.err
    assert not Path("harmed").exists()


def test_two_members_of_one_name_are_refused(small):
    with zipfile.ZipFile(small / "model.pt2", "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr(archive.namelist()[0], pickle.dumps(Harmful()))
    with pytest.raises(ExportError, match="two members of one name"):
        for_torch_export.check(small / "model.pt2", small.parent)


def spoil(small, what):
    """Do something to an exported folder that evaluation must notice."""
    file, record = small / "model.onnx", small / "model.onnx.optin.json"
    if what == "no record":
        record.unlink()
    elif what == "no file":
        file.unlink()
    elif what == "another file":
        shutil.copyfile(small / "model.pt2", file)
    elif what == "another record":
        shutil.copyfile(small / "model.pt2.optin.json", record)
    elif what == "cut short":
        file.write_bytes(file.read_bytes()[:-100])
    elif what == "a mask":
        record.write_text('{"schema": "optin.mask/1"}')
    elif what == "another config":
        config = json.loads((small / "config.json").read_text())
        (small / "config.json").write_text(json.dumps(config | {"num_labels": 3}))
    elif what == "garbage":
        old = sha256_of(file)
        file.write_bytes(b"not a model")
        record.write_text(record.read_text().replace(old, sha256_of(file)))
    elif what == "a path outside":
        record.write_text(record.read_text().replace('"model.onnx":', '"../model.onnx":'))


@pytest.mark.parametrize(
    ("what", "args", "code", "words"),
    [
        ("no record", [], 1, ["model.onnx.optin.json", "optin export CKPT --to onnx"]),
        ("no file", [], 1, ["small/model.onnx does not exist"]),
        ("another file", [], 1, ["sha256 differs", "optin export"]),
        ("another record", [], 1, ["record of model.pt2"]),
        ("cut short", [], 1, ["sha256 differs"]),
        ("a mask", [], 1, ["a mask file", "optin.export/1"]),
        ("another config", [], 1, ["config.json is not the config"]),
        ("garbage", [], 1, ["onnxruntime does not open small/model.onnx"]),
        ("a path outside", [], 1, ["not the name of a file"]),
        ("nothing", ["--device", "meta"], 2, ["run on the cpu", "meta"]),
        ("nothing", ["--arch", "small"], 2, ["--arch"]),
        ("nothing", ["--threads", "0"], 2, ["threads"]),
    ],
)
def test_files_changed_after_export_are_not_evaluated(small, what, args, code, words):
    spoil(small, what)
    result = call("eval", "small/model.onnx", *SIZES, *args)
    assert (result.code, result.out) == (code, ""), result.err
    assert all(word in result.err for word in words), result.err
    assert not list(Path().glob("*.eval.json"))


def test_other_commands_take_no_exported_file(small):
    result = call("profile", "small/model.onnx")
    assert result.code == 1 and re.search(r"\.onnx file; expected a checkpoint", result.err)


# Without optin

PIPELINE = """
import sys
sys.modules["optin_cli"] = None
from transformers import pipeline
import torch
classify = pipeline("text-classification", model=sys.argv[1], trust_remote_code=True)
import json
print(json.dumps(classify(json.loads(sys.argv[2]), top_k=None)))
"""


def test_a_pipeline_of_transformers_takes_the_pruned_folder(made, here, reload_server):
    """The folder is named once, says everything, and nothing is complained of."""
    texts = ["a b c good", "d bad film"]
    quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_MODULES_CACHE": str(here / "modules")}
    result = reload_server.python(PIPELINE, f"{made.pruned}/", json.dumps(texts), cwd=here, **quiet)
    assert result.returncode == 0, result.stderr
    assert "not supported" not in result.stderr
    tokenizer = load_checkpoint(made.pruned).input.tokenizer()
    with torch.no_grad():
        logits = optin_cli.load(made.pruned).model(**tokenizer(texts, padding=True, return_tensors="pt")).logits
    for found, expected in zip(json.loads(result.stdout), logits.softmax(-1), strict=True):
        scores = {entry["label"]: entry["score"] for entry in found}
        assert [scores[f"LABEL_{i}"] for i in range(2)] == pytest.approx(expected.tolist(), abs=1e-4)
