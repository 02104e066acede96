"""The command line: names of outputs, streams, exit statuses, colour."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from unittest.mock import patch

import pytest
from helpers.running import QUICK, call, command, done, environment, run_cli, tree

from optin_cli.artifacts.base import parse
from optin_cli.artifacts.costs import Profile
from optin_cli.artifacts.evaluation import Evaluation
from optin_cli.artifacts.manifest import Manifest
from optin_cli.artifacts.mask import Mask
from optin_cli.artifacts.scores import ScoresHeader

SIZES = ("--latency-runs", "0")

# Names, streams and statuses


def test_a_whole_run_by_default_names(work):
    stages = [
        (["score", "bert", "--calib", "texts.jsonl", *QUICK], "bert.scores.safetensors"),
        (["search", "bert.scores.safetensors", "--keep-flops", "0.6"], "bert.mask.json"),
        (["prune", "bert", "--mask", "bert.mask.json"], "bert-pruned/"),
        (["eval", "bert", "--task", "sst2", "--data", "train.jsonl", "--latency-runs", "2"], "bert.eval.json"),
    ]
    for args, output in stages:
        before = set(tree(work))
        result = call(*args)
        assert (result.code, result.out) == (0, f"{output}\n"), result.err
        new = {name for name in set(tree(work)) - before if "/" not in name}
        assert new == {output.rstrip("/")}
    assert {p.stat().st_mode & 0o777 for p in (work / "bert-pruned").iterdir()} == {0o666 & ~umask()}


def umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize(
    ("source", "output"),
    [
        ("bert.safetensors", "bert"),
        ("folder/bert.ckpt", "bert"),
        ("bert", "bert"),
        ("bert/", "bert"),
        ("./folder/../bert", "bert"),
        ("org/bert", "bert"),
        ("bert-v1.5.pt", "bert-v1.5"),
        ("bert-v1.5", "bert-v1.5"),
        ("bert.scores.safetensors", "bert"),
        ("-", "optin"),
    ],
)
def test_outputs_are_named_after_their_source(work, source, output):
    (work / "folder").mkdir()
    from optin_cli.cli.common import stem_of

    assert stem_of(source) == output


def test_masks_and_evaluations_go_through_pipes(work, made):
    """As in the README: search to prune through a pipe, eval to a reader of JSON."""
    line = " ".join(command())
    script = (
        f"{line} search {made.scores} --keep-flops 0.6 -o - | {line} prune bert --mask - -o small/ && "
        f"{line} eval small/ --task sst2 --data train.jsonl --latency-runs 0 --json"
    )
    result = subprocess.run(
        ["bash", "-c", script], cwd=work, env=environment(), capture_output=True, text=True, check=True
    )
    assert not result.stderr.count("it/s"), "bars of libraries"
    folder, _, evaluation = result.stdout.partition("\n")
    assert folder == "small/"
    assert json.loads(evaluation)["metric"]["name"] == "accuracy"
    small, ours = (json.loads((p / "optin.json").read_text()) for p in (work / "small", made.pruned))
    assert small["inputs"].pop("mask")["name"] == "stdin"
    assert ours["inputs"].pop("mask")["name"] == "bert.mask.json"
    assert small["inputs"].pop("calibration")["name"] == "texts.jsonl"
    assert small["refit"] and ours["refit"] is None  # on the data that the mask was scored on
    assert {key for key in ours if small[key] != ours[key]} <= {"refit", "options", "weights", "certificate"}


def test_a_reader_that_leaves_early(work, made):
    line = " ".join(command("inspect", made.mask, "--json"))
    result = subprocess.run(
        ["bash", "-c", f"{line} | true"], cwd=work, env=environment(), capture_output=True, text=True, check=False
    )
    assert "Traceback" not in result.stderr and "Exception" not in result.stderr, result.stderr


@pytest.mark.parametrize(
    ("args", "kind"),
    [
        (["profile", "bert", "--json"], Profile),
        (["profile", "bert", "-o", "-"], Profile),
        (["score", "bert", "--calib", "texts.jsonl", *QUICK, "--json"], ScoresHeader),
        (["search", "{scores}", "--keep-flops", "0.6", "--json"], Mask),
        (["search", "{scores}", "--keep-flops", "0.6", "-o", "-"], Mask),
        (["eval", "bert", *SIZES, "--json"], Evaluation),
        (["eval", "bert", *SIZES, "-o", "-"], Evaluation),
        (["eval", "bert", *SIZES, "-o", "e.json", "--json"], Evaluation),
        (["inspect", "{scores}", "--json"], ScoresHeader),
        (["inspect", "{mask}", "--json"], Mask),
        (["inspect", "{evaluation}", "--json"], Evaluation),
        (["inspect", "{profile}", "--json"], Profile),
        (["inspect", "{pruned}", "--json"], Manifest),
        (["inspect", "{pruned}/optin.json", "--json"], Manifest),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value.kind,
)
def test_json_on_stdout_is_the_artifact(work, made, args, kind):
    result = done(*[arg.format(**vars(made)) for arg in args])
    artifact = parse(kind, result.out, "stdout")
    assert artifact.dump() == result.out


@pytest.mark.parametrize("name", ["scores", "mask", "evaluation", "profile", "pruned"])
def test_inspect_tells_people(made, name):
    text = done("inspect", getattr(made, name)).out
    assert "sha256" in text and "written by optin" in text
    assert "MACs" in text if name in ("evaluation", "profile") else "encoder.0.head" in text


def test_profile_prints_a_table(work):
    text = done("profile", "bert", "--seq-len", "32").out
    assert all(word in text for word in ("bert", "32 tokens", "encoder.0–2 neuron", "cannot be pruned", "%"))
    assert "encoder.2.neuron" in done("profile", "bert", "--all").out
    assert not list(work.glob("*.json"))


@pytest.mark.parametrize("name", ["bert[v2]", "b[bold]", "b e r t"])
def test_any_name_can_be_shown(work, made, name):
    (work / "bert").rename(name)
    assert name in done("profile", name).out
    assert done("eval", name, *SIZES).out == f"{name}.eval.json\n"
    assert name in done("inspect", f"{name}.eval.json").out


def test_force_replaces_outputs_by_equal_bytes(work, made):
    for output in ("bert.scores.safetensors", "bert.mask.json", "bert.eval.json"):
        Path(output).write_text("old")
    shutil.copytree(made.pruned, "bert-pruned")
    Path("bert-pruned/old").touch()
    done("score", "bert", "--calib", "texts.jsonl", *QUICK, "--force")
    done("search", "bert.scores.safetensors", "--keep-flops", "0.6", "--force")
    done("prune", "bert", "--mask", "bert.mask.json", "--no-refit", "--force")
    done("eval", "bert", *SIZES, "--force")
    assert Path("bert.scores.safetensors").read_bytes() == made.scores.read_bytes()
    assert Path("bert.mask.json").read_bytes() == made.mask.read_bytes()
    assert tree(work / "bert-pruned") == tree(made.pruned), "equal runs give equal bytes"
    parse(Evaluation, Path("bert.eval.json").read_text(), "bert.eval.json")


def test_colour_is_for_terminals(work, made):
    for env in ({}, {"NO_COLOR": "1"}):
        results = [run_cli("inspect", made.mask, cwd=work, env=env), run_cli("inspect", "none", cwd=work, env=env)]
        assert [r.returncode for r in results] == [0, 1]
        assert not any("\x1b" in r.stdout + r.stderr for r in results)
        assert results[1].stderr.startswith("error: none does not exist")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ImportError("libtorch.so: failed to map segment from shared object"), "A library cannot be loaded: libtorch"),
        (ModuleNotFoundError("No module named 'scipy'", name="scipy"), "A library cannot be loaded: No module named"),
        (ImportError("cannot import name 'x'", name="optin_cli.files"), "This is a defect of optin: ImportError"),
    ],
)
def test_libraries_that_cannot_be_loaded_are_no_defect(made, error, words):
    with patch("optin_cli.checkpoints.checkpoint.load", side_effect=error):
        result = call("profile", made.bert)
    assert result.code == 1 and words in result.err, result.err


def test_python_without_docstrings_is_refused_before_transformers(made, here):
    result = run_cli("profile", made.bert, cwd=here, env={"PYTHONOPTIMIZE": "2"})
    assert result.returncode == 2 and "Unset PYTHONOPTIMIZE" in result.stderr, result.stderr
    assert run_cli("inspect", made.mask, cwd=here, env={"PYTHONOPTIMIZE": "2"}).returncode == 0
