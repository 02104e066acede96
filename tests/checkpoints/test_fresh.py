"""Certificates: what a process without optin loads, failures, and forks that see what new interpreters see."""

import pytest
from helpers.models import save_checkpoint, save_images

import optin_cli
from optin_cli.checkpoints.checkpoint import load
from optin_cli.checkpoints.fresh import run_fresh
from optin_cli.errors import CertificateError
from optin_cli.options.scoring import ScoreOptions
from optin_cli.searching.limits import Limits


def certificate_of(checkpoint, folder):
    """Of the checkpoint pruned to 60 % of its MACs."""
    scores = optin_cli.score(checkpoint, options=ScoreOptions(criterion="magnitude"))
    return optin_cli.prune(checkpoint, optin_cli.search(scores, Limits(keep_macs=0.6)), folder).certificate


def test_a_new_interpreter_certifies_transformers(tmp_path, fresh_processes):
    checkpoint = load(save_checkpoint(tmp_path / "whole"))
    certificate = certificate_of(checkpoint, tmp_path / "small")
    assert certificate.reloaded <= certificate.tolerance
    assert certificate.loader.startswith("AutoModelForSequenceClassification.from_pretrained")


def test_a_new_interpreter_certifies_timm(tmp_path, fresh_processes):
    checkpoint = load(save_images(tmp_path / "whole", "timm-vit"))
    certificate = certificate_of(checkpoint, tmp_path / "small")
    assert certificate.reloaded <= certificate.tolerance
    assert certificate.loader.startswith("timm.create_model")


@pytest.mark.parametrize("target", ["onnx", "torch-export"])
def test_a_new_interpreter_certifies_exported_files(tmp_path, fresh_processes, target):
    record = optin_cli.export(save_checkpoint(tmp_path / "whole", num_hidden_layers=1), target, tmp_path / "out")
    assert record.certificate.difference <= record.certificate.tolerance


ENDINGS = {
    "success": ("print('x')", None),
    "exit 0": ("raise SystemExit(0)", None),
    "exit 3": ("import sys; print('this is why', file=sys.stderr); sys.exit(3)", "this is why"),
    "a message": ("raise SystemExit('this is why')", "this is why"),
    "an exception": ("x = 1\nraise ValueError('this is why')", "ValueError: this is why"),
    "syntax": ("x = (", "SyntaxError: '(' was never closed"),
    "optin": ("import optin_cli.model.cut", "optin_cli"),
    "killed": ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", ""),
}
UNIMPORTABLE = "import sys\nsys.modules['optin_cli'] = None\n"


def failure_of(code, arguments, folder):
    try:
        run_fresh(UNIMPORTABLE + code, arguments, folder, "It does not load")
    except CertificateError as error:
        return error.message
    return None


@pytest.mark.parametrize(("code", "words"), ENDINGS.values(), ids=ENDINGS)
def test_forks_fail_in_the_words_of_new_interpreters(tmp_path, fresh_process, monkeypatch, code, words):
    forked = failure_of(code, [], tmp_path)
    monkeypatch.setattr("optin_cli.checkpoints.fresh.fresh_process", fresh_process)
    assert forked == failure_of(code, [], tmp_path)
    assert forked is None if words is None else forked.startswith("It does not load in a fresh process:\n")
    assert words is None or words in forked


SURROUNDINGS = """
import json, os, sys, warnings
from pathlib import Path
warnings.warn("nobody sees this")
from transformers.utils import HF_MODULES_CACHE
from huggingface_hub.constants import HF_HUB_OFFLINE
found = {"cwd": os.getcwd(), "arguments": sys.argv, "path": sys.path[0], "modules": HF_MODULES_CACHE}
found |= {"offline": HF_HUB_OFFLINE, "mine": os.environ["MINE"], "name": __name__}
Path(sys.argv[1]).write_text(json.dumps(found, sort_keys=True))
"""


def test_forks_see_what_new_interpreters_see(tmp_path, fresh_process, monkeypatch):
    monkeypatch.setenv("MINE", "now")
    run_fresh(SURROUNDINGS, ["forked.json", "more"], tmp_path, "")
    monkeypatch.setattr("optin_cli.checkpoints.fresh.fresh_process", fresh_process)
    run_fresh(SURROUNDINGS, ["new.json", "more"], tmp_path, "")
    forked, new = ((tmp_path / name).read_text() for name in ("forked.json", "new.json"))
    assert forked.replace("forked.json", "new.json") == new
