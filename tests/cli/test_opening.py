"""`--as`: every command opens a checkpoint as the class asked for, and artifacts say so."""

import json

import pytest
from helpers.models import save_checkpoint
from helpers.running import QUICK, call, done

from optin_cli.reporting.commands import commands_for
from optin_cli.reporting.evidence import gather

LEFT_OUT = "bert: 5 tensors (cls.predictions.bias, "


@pytest.fixture(scope="module")
def pruned(tmp_path_factory, texts):
    """A masked language model, and what the pipeline makes of its bare encoder; what every command said."""
    root = tmp_path_factory.mktemp("as")
    save_checkpoint(root / "bert", head="masked")
    opened = ("--as", "AutoModel")
    said = [
        done("profile", root / "bert", *opened, "-o", root / "profile.json").err,
        done("score", root / "bert", "--calib", texts, *QUICK, *opened, "-o", root / "s.safetensors").err,
        done("search", root / "s.safetensors", "--keep-flops", "0.8", "-o", root / "mask.json").err,
        done("prune", root / "bert", "--mask", root / "mask.json", "--no-refit", *opened, "-o", root / "small").err,
    ]
    compared = ("--data", texts, "--against", root / "bert", "--latency-runs", 0, *opened)
    said.append(done("eval", root / "small", *compared, "-o", root / "eval.json").err)
    return root, said


def test_every_command_says_what_is_left_out(pruned):
    _, (profiled, scored, searched, cut, evaluated) = pruned
    assert all(
        LEFT_OUT in said and "which BertModel has no place for." in said for said in (profiled, scored, cut, evaluated)
    )
    assert LEFT_OUT not in searched


def test_artifacts_record_the_class(pruned):
    root, _ = pruned
    for name in ("profile.json", "mask.json", "small/optin.json"):
        assert json.loads((root / name).read_text())["inputs"]["checkpoint"]["opened_as"] == "AutoModel"
    evaluated = json.loads((root / "eval.json").read_text())["inputs"]
    assert evaluated["against"]["opened_as"] == "AutoModel" and "opened_as" not in evaluated["checkpoint"]


def test_a_mask_of_another_class_is_refused_in_one_sentence(pruned):
    root, _ = pruned
    run = call("prune", root / "bert", "--mask", root / "mask.json", "-o", root / "other")
    assert run.code == 1 and not (root / "other").exists()
    assert (
        "mask.json was made from bert opened as AutoModel, but bert was opened as the class that its config" in run.err
    )
    assert "Pass --as AutoModel" in run.err


def test_reports_repeat_the_flag(pruned):
    root, _ = pruned
    named = {"scores": "s.safetensors", "mask": "mask.json", "profile": "profile.json", "eval": "eval.json"}
    lines = commands_for(gather(root / "small", {kind: [root / name] for kind, name in named.items()}))
    assert {line.split()[1]: "--as AutoModel" in line for line in lines} == {
        "profile": True,
        "score": True,
        "search": False,
        "prune": True,
        "eval": True,
    }


def test_exported_files_keep_the_class(pruned, texts):
    root, _ = pruned
    done("export", root / "bert", "--to", "torch-export", "--as", "AutoModel", "-o", root / "exported")
    file = next((root / "exported").glob("*.pt2"))
    compared = ("--against", root / "bert", "--data", texts, "--latency-runs", 0, "-o", root / "e.json", "--force")
    done("eval", file, *compared, "--as", "AutoModel")
    assert "inputs" in json.loads((root / "e.json").read_text())
    run = call("eval", file, "--as", "AutoModelForMaskedLM", "--latency-runs", 0, "-o", root / "f.json")
    assert run.code == 2 and "was exported as AutoModel" in run.err
