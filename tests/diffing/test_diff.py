"""`optin diff`: what two of a kind differ in, exit statuses, and kinds that do not match."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.running import call, done, python
from helpers.sweeps import make_sweep, point
from safetensors.torch import load_file, save_file
from scipy.stats import spearmanr

import optin_cli
from optin_cli.artifacts.base import Source, Totals, Workload
from optin_cli.artifacts.export import Export, ExportCertificate, ExportProbe, TensorRule
from optin_cli.artifacts.latency import Ladder, LatencyTable
from optin_cli.artifacts.reading import KINDS
from optin_cli.artifacts.scores import Scores, read_scores, write_scores
from optin_cli.artifacts.vocabulary import Vocabulary, VocabularyProof
from optin_cli.diffing.scores import spearman
from optin_cli.diffing.tables import diff_values, flatten


def differ(*args):
    return json.loads(done("diff", *args, "--json").out)


def edit(path, target, change):
    """A copy of a JSON file with a change."""
    raw = json.loads(Path(path).read_text())
    change(raw)
    Path(target).write_text(json.dumps(raw))
    return target


SOURCE = Source(name="bert", sha256="0" * 64)
HEAD = {"optin_version": "0.1.0", "options": {}, "inputs": {"checkpoint": SOURCE}}


def make_table(**changes):
    fields = {
        "workload": Workload(batch_size=8, seq_len=64),
        "device": "cpu (abacus)",
        "threads": 2,
        "total_ms": 20.0,
        "groups": {
            "encoder.0.head": Ladder(units=[0, 1, 4], ms=[0.0, 1.5, 3.0]),
            "encoder.0.neuron": Ladder(units=[0, 40], ms=[0.0, 5.0]),
        },
        "versions": {"torch": "2.6"},
    }
    return LatencyTable(**HEAD, **(fields | changes))


def make_vocabulary(**changes):
    cost = Totals(macs=10, parameters=10, bytes=40)
    proof = VocabularyProof(texts=3, trials=9, rows=2, loader="someone", difference=0.0, tolerance=1.0)
    fields = {"tokens_before": 9, "tokens_after": 5, "before": cost, "after": cost, "proof": proof}
    return Vocabulary(**HEAD, model_class="BertModel", **(fields | changes))


def make_export(**changes):
    probes = [
        ExportProbe(batch_size=3, seq_len=17, padded=True, difference=1e-6),
        ExportProbe(batch_size=1, seq_len=8, difference=2e-6),
    ]
    fields = {
        "target": "onnx",
        "files": {"model.onnx": "a" * 64},
        "family": "bert",
        "model_class": "BertForSequenceClassification",
        "auto_class": "AutoModelForSequenceClassification",
        "takes": {"input_ids": TensorRule(dtype="int64", shape=["batch", "length"])},
        "gives": {"logits": TensorRule(dtype="float32", shape=["batch", 2])},
        "opset": 18,
        "workload": Workload(seq_len=128),
        "totals": Totals(macs=1000, parameters=100, bytes=400),
        "certificate": ExportCertificate(loader="onnxruntime", probes=probes, difference=2e-6, tolerance=1e-4),
        "versions": {"onnx": "1.17"},
    }
    return Export(**HEAD, **(fields | changes))


def write(path, artifact):
    Path(path).write_text(artifact.dump())
    return path


@pytest.fixture
def shelf(made, here):
    """By kind of artifact: one, another of the same kind, and what a table of the two must show."""
    scores = read_scores(made.scores)
    write_scores("b.safetensors", Scores(scores.header, {n: v[::-1] for n, v in scores.importance.items()}))
    sweeps = [make_sweep(SOURCE, SOURCE, [point("optin", 0.5, value)]) for value in (0.88, 0.75)]

    def fewer(raw):
        raw["groups"]["encoder.0.head"]["kept"] = []

    def worse(raw):
        raw["metric"]["value"] = 0.125

    def costlier(raw):
        raw["totals"]["macs"] = 1_000_000_123

    return {
        "profile": (made.profile, edit(made.profile, "p.json", costlier), ["totals.macs", "123"]),
        "scores": (made.scores, "b.safetensors", ["spearman", "encoder.0.neuron"]),
        "mask": (made.mask, edit(made.mask, "m.json", fewer), ["encoder.0.head", "jaccard"]),
        "manifest": (
            made.pruned / "optin.json",
            edit(made.pruned / "optin.json", "f.json", fewer),
            ["encoder.0.head", "jaccard"],
        ),
        "eval": (made.evaluation, edit(made.evaluation, "e.json", worse), ["metric.value", "0.125"]),
        "sweep": (write("s.json", sweeps[0]), write("t.json", sweeps[1]), ["optin at 0.5: value", "0.75"]),
        "export": (write("x.json", make_export()), write("y.json", make_export(opset=19)), ["opset", "18", "19"]),
        "vocabulary": (
            write("v.json", make_vocabulary()),
            write("w.json", make_vocabulary(tokens_after=7)),
            ["tokens_after", "7"],
        ),
        "latency": (
            write("l.json", make_table()),
            write("k.json", make_table(threads=7)),
            ["threads", "7", "measured with"],
        ),
    }


@pytest.mark.parametrize("kind", [kind.kind for kind in KINDS])
def test_every_kind_of_artifact_is_inspected_and_compared(shelf, kind):
    """A kind that is new in the registry fails here until it has an example, a table and a comparison."""
    path, other, words = shelf[kind]
    shown = done("inspect", path).out
    assert f"optin.{kind}/1" in shown and "checkpoint: bert" in shown and shown.count("\n") > 3
    assert json.loads(done("inspect", path, "--json").out)["schema"] == f"optin.{kind}/1"
    same = done("diff", path, path, "--exit-code")
    assert "They differ in nothing." in same.out
    found = differ(path, path)
    assert (found["kind"], found["same"], found["sections"], found["timings"]) == (kind, True, {}, {})
    run = call("diff", path, other, "--exit-code")
    assert run.code == 3, run.err
    assert all(word in run.out for word in words), run.out
    found = differ(path, other)
    assert (found["kind"], found["same"]) == (kind, False) and found["sections"]


@pytest.mark.parametrize("name", ["mask", "scores", "evaluation", "profile", "bert", "pruned"])
def test_the_same_twice(made, name):
    path = getattr(made, name)
    result = done("diff", path, path, "--exit-code")
    assert "They differ in nothing." in result.out and "sha256" in result.out
    found = differ(path, path)
    assert (found["same"], found["sections"], found["timings"]) == (True, {}, {})


def test_masks_differ_by_group(made, here):
    done("search", made.scores, "--keep-flops", "0.8", "-o", "big.json")
    found = differ(made.mask, "big.json")
    small, big = (json.loads(Path(p).read_text())["groups"] for p in (made.mask, "big.json"))
    changed = {name for name in small if small[name]["kept"] != big[name]["kept"]}
    assert found["kind"] == "mask" and found["same"] is False
    assert set(found["sections"]["groups"]) == changed
    assert found["summary"]["groups that differ"] == f"{len(changed)} of {len(small)}"
    for name, row in found["sections"]["groups"].items():
        mine, theirs = (set(side[name]["kept"]) for side in (small, big))
        assert (row["kept a"], row["kept b"], row["of"]) == (len(mine), len(theirs), small[name]["units"])
        assert (row["only a"], row["only b"]) == (sorted(mine - theirs), sorted(theirs - mine))
        assert row["jaccard"] == len(mine & theirs) / len(mine | theirs)
    assert found["sections"]["budget"]["budget.asked.macs"]["a"] == 0.6
    assert found["sections"]["budget"]["budget.asked.macs"]["b - a"] == pytest.approx(0.2)
    assert "inputs" not in found["sections"]
    shown = done("diff", made.mask, "big.json").out
    assert "jaccard" in shown and "only b" in shown and "encoder" in shown
    assert call("diff", made.mask, "big.json", "--exit-code").code == 3


def test_masks_with_other_groups(made, here):
    def change(raw):
        raw["groups"]["encoder.9.head"] = raw["groups"].pop("encoder.0.head")

    rows = differ(made.mask, edit(made.mask, "x.json", change))["sections"]["groups"]
    assert (rows["encoder.0.head"]["kept b"], rows["encoder.9.head"]["kept a"]) == (None, None)


def test_scores_differ_by_rank_and_value(made, here):
    scores = read_scores(made.scores)
    draw = np.random.default_rng(0)
    noisy = {
        n: v if "0" in n else (v * draw.uniform(0.2, 5, len(v))).astype(np.float32)
        for n, v in scores.importance.items()
    }
    header = scores.header.model_copy(update={"options": {**scores.header.options, "seed": 7}})
    write_scores("n.safetensors", Scores(header, noisy))
    found = differ(made.scores, "n.safetensors")["sections"]
    assert found["options"] == {"seed": {"a": 0, "b": 7, "b - a": 7, "b / a": None}}
    assert set(found["importance by group"]) == {name for name in noisy if "0" not in name}
    neurons = [name for name in noisy if name.endswith("neuron")]
    both = [np.concatenate([side[name] for name in neurons]) for side in (scores.importance, noisy)]
    assert found["importance by kind"]["neuron"]["spearman"] == pytest.approx(spearmanr(*both).statistic)
    assert found["importance by kind"]["head"]["units"] == 12
    assert spearman(np.ones(3, np.float32), np.arange(3, dtype=np.float32)) is None


def test_checkpoints_differ_by_weights(made, here):
    found = differ(made.bert, made.other)
    mine, theirs = (load_file(folder / "model.safetensors") for folder in (made.bert, made.other))
    largest = max(float((mine[name].double() - theirs[name].double()).abs().max()) for name in mine)
    assert found["kind"] == "checkpoint"
    assert found["summary"]["largest difference"] == pytest.approx(largest)
    assert found["summary"]["tensors of other shape or type"] == 0
    assert set(found["sections"]) == {"weights"}, "the same config"


def test_a_cut_checkpoint_and_its_original(made):
    found = differ(made.bert, made.pruned)
    tensors = found["sections"]["tensors"]
    name = next(n for n in tensors if n.endswith("intermediate.dense.weight"))
    assert tensors[name]["a"] == "40x32 float32" and tensors[name]["b"].endswith("x32 float32")
    assert "optin_plan" in found["sections"]["config"] and "weights" not in found["sections"], "no refit"
    assert found["summary"]["parameters b"] < found["summary"]["parameters a"]
    assert "40x32" in done("diff", made.bert, made.pruned).out


def test_two_cut_checkpoints(made, here):
    shutil.copytree(made.pruned, "b")
    state = load_file("b/model.safetensors")
    name = next(iter(state))
    state[name] = state[name].clone()
    state[name].view(-1)[0] += 0.5
    save_file(state | {"extra": state[name][:1].half()}, "b/model.safetensors")

    def fewer_and_unbound(raw):
        raw["groups"]["encoder.0.head"]["kept"] = [0]
        del raw["weights"]  # as earlier records are

    edit("b/optin.json", "b/optin.json", fewer_and_unbound)
    found = differ(made.pruned, "b")["sections"]
    assert found["weights"] == {
        name: {"largest difference": pytest.approx(0.5, abs=1e-5), "relative": found["weights"][name]["relative"]}
    }
    assert found["tensors"]["extra"]["a"] is None and found["tensors"]["extra"]["b"].endswith("float16")
    assert found["groups"]["encoder.0.head"]["kept b"] == 1
    alone = differ(made.pruned / "model.safetensors", "b/model.safetensors")
    assert set(alone["sections"]) == {"tensors", "weights"}
    record = json.loads(Path("b/optin.json").read_text()) | {
        "weights": json.loads((made.pruned / "optin.json").read_text())["weights"]
    }
    Path("b.json").write_text(json.dumps(record))
    assert set(differ(made.pruned / "optin.json", "b.json")["sections"]) == {"groups"}


def test_evaluations_and_what_is_timed(made, here):
    def slower(raw):
        raw["latency"]["median_ms"] *= 2

    def worse(raw):
        raw["metrics"]["accuracy"] = raw["metric"]["value"] = 0.25

    def elsewhere(raw):
        raw["latency"]["device"] = "cpu (abacus)"

    edit(made.evaluation, "slow.json", slower)
    run = done("diff", made.evaluation, "slow.json", "--exit-code")
    assert "nothing but timings" in run.out and "median_ms" in run.out
    assert differ(made.evaluation, "slow.json")["timings"]["latency.median_ms"]["b / a"] == pytest.approx(2)
    edit(made.evaluation, "elsewhere.json", elsewhere)
    assert "nothing but timings" in done("diff", made.evaluation, "elsewhere.json", "--exit-code").out
    assert differ(made.evaluation, "elsewhere.json")["timings"]["latency.device"]["b"] == "cpu (abacus)"
    edit(made.evaluation, "worse.json", worse)
    measures = differ(made.evaluation, "worse.json")["sections"]["measures"]
    assert measures["metrics.accuracy"]["b"] == 0.25 and "metric.value" not in measures, "one number, one row"
    assert call("diff", made.evaluation, "worse.json", "--exit-code").code == 3


def test_sweeps_differ_by_point(here, made):
    sweeps = {
        "a": [point("optin", 0.7, 0.89), point("optin", 0.5, 0.88)],
        "b": [point("optin", 0.7, 0.87, prune_seconds=3.0), point("magnitude", 0.5, 0.7)],
    }
    for name, points in sweeps.items():
        Path(name).mkdir()
        Path(name, "sweep.json").write_text(make_sweep(SOURCE, SOURCE, points).dump())
    found = differ("a", "b/sweep.json")
    assert found["summary"] == {"points in both": 1, "only in a": 1, "only in b": 1}
    assert found["sections"]["points"]["optin at 0.5"] == {"a": 0.88, "b": None}
    assert found["sections"]["points"]["optin at 0.7: value"]["b - a"] == pytest.approx(-0.02)
    assert set(found["timings"]) == {"optin at 0.7: prune_seconds"}


def test_latency_tables_compare_times_apart_from_what_was_timed(here):
    faster = {
        "encoder.0.head": Ladder(units=[0, 1, 4], ms=[0.0, 0.5, 1.5]),
        "encoder.0.neuron": Ladder(units=[0, 10, 40], ms=[0.0, 2.0, 5.0]),
        "encoder.1.head": Ladder(units=[0, 4], ms=[0.0, 3.0]),
    }
    write("a.json", make_table())
    write("b.json", make_table(total_ms=15.0, groups=faster, device="cuda (X)", versions={"torch": "2.7"}))
    found = differ("a.json", "b.json")
    assert found["summary"] == {"groups in both": 2}
    assert found["sections"] == {
        "measured with": {
            "device": {"a": "cpu (abacus)", "b": "cuda (X)"},
            "versions.torch": {"a": "2.6", "b": "2.7"},
        },
        "kept units that were timed": {
            "encoder.0.neuron": {"a": [0, 40], "b": [0, 10, 40]},
            "encoder.1.head": {"a": None, "b": [0, 4]},
        },
    }
    assert found["timings"] == {
        "total_ms": {"a": 20.0, "b": 15.0, "b - a": -5.0, "b / a": 0.75},
        "encoder.0.head.ms": {
            "a": 3.0,
            "b": 1.5,
            "b - a": -1.5,
            "b / a": 0.5,
            "largest difference": 1.5,
            "at units": 4,
        },
    }
    write("again.json", make_table(total_ms=21.0))
    assert "nothing but timings" in done("diff", "a.json", "again.json", "--exit-code").out


def test_latency_tables_of_measured_times(made, here):
    for name in ("a", "b"):
        done("profile", made.bert, "--latency", "--batch", 1, "--seq-len", 8, "--runs", 1, "-o", f"{name}.json")
    found = differ("a.json", "b.json")
    assert found["same"] is True and found["timings"]["total_ms"]["a"] > 0


def test_exports_compare_files_tensors_and_certificates(here):
    write("a.json", make_export())
    certificate = make_export().certificate
    probes = [certificate.probes[0].model_copy(update={"difference": 5e-6}), certificate.probes[1]]
    changes = {
        "target": "torch-export",
        "files": {"model.pt2": "b" * 64},
        "gives": {"logits": TensorRule(dtype="float32", shape=["batch", 3])},
        "opset": None,
        "certificate": certificate.model_copy(update={"probes": probes, "difference": 5e-6}),
    }
    write("b.json", make_export(**changes))
    found = differ("a.json", "b.json")
    assert found["summary"] == {"file a": "model.onnx", "file b": "model.pt2"}
    sections = found["sections"]
    assert sections["files"]["model.onnx"] == {"a": "sha256 aaaaaaaaaaaa", "b": None}
    assert sections["tensors"] == {"gives logits": {"a": "float32 batch x 2", "b": "float32 batch x 3"}}
    assert set(sections["certificate"]) == {"difference", "probe 0: batch 3, 17 tokens, padded"}
    assert set(sections["record"]) == {"target", "opset"}
    assert "batch x 3" in done("diff", "a.json", "b.json").out


def test_from_python_and_from_a_pipe(made):
    found = optin_cli.diff(made.mask, made.mask)
    assert found.same and found.kind == "mask"
    assert "differ in nothing" in done("diff", made.mask, "-", stdin=made.mask.read_bytes()).out


def test_only_weights_need_torch(made, here):
    code = "import sys; sys.modules['torch'] = None\nfrom optin_cli.cli.main import main\nmain()"
    for name in ("mask", "scores"):
        result = python(code, "diff", getattr(made, name), getattr(made, name), cwd=here)
        assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("b", "code", "words"),
    [
        ("scores", 2, ["is a mask", "is a scores", "only two of one kind"]),
        ("pruned", 2, ["is a mask", "is a checkpoint"]),
        ("evaluation", 2, ["is a mask", "is a eval"]),
        ("none.json", 1, ["none.json does not exist"]),
        ("none.safetensors", 1, ["none.safetensors does not exist"]),
        ("empty", 2, ["empty holds neither config.json nor sweep.json"]),
        ("text.json", 1, ["text.json is neither"]),
        ("list.json", 1, ["list.json has the schema [1]"]),
    ],
)
def test_files_that_cannot_be_compared_are_refused(made, here, b, code, words):
    Path("empty").mkdir()
    Path("text.json").write_text("{")
    Path("list.json").write_text('{"schema": [1]}')
    result = call("diff", made.mask, getattr(made, b, b))
    assert (result.code, result.out) == (code, "")
    assert all(word in result.err for word in words), result.err


def test_values_are_compared_with_their_types():
    assert flatten({"a": {"b": 1, "c": {}}, "plan": {"x": 1}}, whole=("plan",)) == {
        "a.b": 1,
        "a.c": {},
        "plan": {"x": 1},
    }
    rows = diff_values({"same": [1], "was": 1, "flag": True}, {"same": [1], "is": None, "was": 1.0, "flag": 1})
    assert rows == {"was": {"a": 1, "b": 1.0, "b - a": 0.0, "b / a": 1.0}, "flag": {"a": True, "b": 1}}
