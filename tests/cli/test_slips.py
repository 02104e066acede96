"""Slips of users: what the message says of them, and what it proposes."""

import os
import shutil
from pathlib import Path

import pytest
from helpers.running import call, done, python

from optin_cli.artifacts.base import ArtifactError, parse
from optin_cli.artifacts.mask import Mask
from optin_cli.cli.common import stem_of
from optin_cli.cli.search import emptied_notes
from optin_cli.errors import UsageError, did_you_mean
from optin_cli.exporting.registry import ExportError, _require
from optin_cli.options.declare import Option
from optin_cli.options.export import ExportOptions


@pytest.fixture
def desk(here, made):
    for path in (made.scores, made.mask, made.evaluation):
        shutil.copyfile(path, here / path.name)
    shutil.copytree(made.bert, "bert")
    return here


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["score", "bert", "--calib", "x", "--lambda", "-1"], 2, ["--lambda is -1", "at least 0"]),
        (["search", "bert.scores.safetensors", "--keep-flops", "50%"], 2, ["'50%'", "As a share: 0.5."]),
        (["sweep", "bert", "--calib", "x", "--keep-flops", "50"], 2, ["50", "For 50 %, pass 0.5."]),
        (["search", "bert.scores.safetensors", "--keep-flops", "50", "-o", "m"], 2, ["50", "For 50 %, pass 0.5."]),
        (["search", "bert"], 2, ["No budget"]),
        (["search", "bert", "--keep-flops", "0.5", "-o", "m"], 1, ["bert is a folder", "optin score CKPT"]),
        (["search", "bert.mask.json", "--keep-flops", "0.5", "-o", "m"], 1, ["is a mask file", "optin score CKPT"]),
        (["search", "none", "--keep-flops", "0.5"], 1, ["does not exist", "optin score CKPT"]),
        (["prune", "bert", "--mask", "bert.scores.safetensors"], 1, ["is a safetensors file", "optin search SCORES"]),
        (["prune", "bert", "--mask", "bert-pruned.eval.json"], 1, ["eval file", "optin search"]),
        (["prune", "bert", "--mask", "bert"], 1, ["bert is a folder", "optin search SCORES"]),
        (["prune", "bert", "--mask", "bert.mask.json", "-o", "x.safetensors"], 1, ["is to be a folder", "such as x"]),
        (["search", "bert.scores.safetensors", "--keep-flops", "0.9,0.8", "-o", "m.json"], 1, ["is to be a folder"]),
        (["sweep", "bert", "--calib", "x", "--keep-flops", "0.5", "-o", "s.json"], 1, ["is to be a folder"]),
        (["eval", "bert", "--confidence", "0.9"], 2, ["--confidence is of --max-drop"]),
        (["eval", "bert", "--max-drop", "0.1", "-o", "bert.mask.json"], 2, ["--against"]),
        (["sweep", "bert", "--calib", "x", "--keep-flops", "0.5", "--confidence", "0.9"], 2, ["--max-drop"]),
        (["export", "bert", "--to", "onnx", "--int8", "--dtype", "float16"], 2, ["--int8 and --dtype float16"]),
        (["export", "bert", "--to", "torch-export", "--dtype", "float16"], 2, ["no --dtype float16", "--to onnx"]),
        (["export", "bert", "--to", "onnx", "--dtype", "half"], 2, ["'half'", "float16"]),
    ],
)
def test_refusals_name_the_slip_and_the_way_out(desk, args, code, words):
    before = sorted(path.name for path in desk.iterdir())
    run = call(*args)
    assert run.code == code, run.err
    missing = [word for word in words if word not in run.err]
    assert not missing, f"{missing} not in:\n{run.err}"
    assert sorted(path.name for path in desk.iterdir()) == before


@pytest.mark.parametrize(
    ("name", "known", "near"),
    [
        ("taylor", ["trajectory", "fisher"], None),
        ("trajectry", ["trajectory", "fisher"], "trajectory"),
        ("sst-2", ["sst2", "mnli"], "sst2"),
        ("modernbart", ["deberta-v2", "vit"], None),
    ],
)
def test_only_near_names_are_proposed(name, known, near):
    hint = did_you_mean(name, known)
    assert hint.startswith(f"Did you mean {near}?" if near else "Known: ")


def test_outputs_are_named_after_links_not_after_what_they_lead_to(desk):
    Path("short").symlink_to("bert", target_is_directory=True)
    assert stem_of("short") == "short" and stem_of("short/") == "short"
    assert stem_of(".") == desk.name
    Path("inner").mkdir()
    os.chdir("inner")
    assert stem_of("..") == desk.name


def test_a_folder_is_named_so_that_it_is_not_the_one_above(desk):
    os.chdir("bert")
    for path in Path().glob("*token*"):
        path.unlink()
    for path in Path().glob("vocab*"):
        path.unlink()
    run = call("score", ".", "--calib", "x.txt", "-o", "../s.safetensors") if Path("x.txt").write_text("a\n") else None
    assert f"into {desk / 'bert'}." in run.err and ".." not in run.err.replace("...", "")


def test_a_package_is_named_once():
    with pytest.raises(ExportError, match="needs nowhere_at_all, which is not installed"):
        _require("The target x", ("nowhere_at_all", "nowhere_at_all"), "x")


def test_layers_that_lose_everything_of_a_kind_are_named(made):
    from optin_cli.artifacts.scores import read_scores

    mask, header = parse(Mask, made.mask.read_bytes(), "m"), read_scores(made.scores).header
    assert emptied_notes(mask, header) == []
    name = next(name for name in mask.groups if name.endswith(".head"))
    empty = mask.groups[name].model_copy(update={"kept": []})
    notes = emptied_notes(mask.model_copy(update={"groups": {**mask.groups, name: empty}}), header)
    assert notes == [f"warning: no head is left in {header.groups[name].block}"]


def test_colours_are_left_out_where_nobody_wants_them(desk):
    code = (
        "import sys, typer\nfrom unittest.mock import patch\nfrom optin_cli.cli import main\n"
        "with patch('typer.secho') as said:\n"
        "    try:\n        main._fail('x', None, 1)\n    except SystemExit:\n        pass\n"
        "print(said.call_args.kwargs['color'])\n"
    )
    assert python(code, cwd=desk, NO_COLOR="1").stdout.split() == ["False"]
    assert python(code, cwd=desk, NO_COLOR="").stdout.split() == ["None"]


def test_the_version_says_of_what():
    from optin_cli.version import __version__

    assert done("--version").out == f"optin {__version__}\n"


def test_options_outside_their_range_are_named_as_the_class_names_them():
    with pytest.raises(UsageError, match="exclude each other"):
        ExportOptions(int8=True, dtype="float16")
    with pytest.raises(UsageError) as caught:
        Option("--share", high=1, above=0).check(40, "share")
    assert caught.value.hint == "For 40 %, pass 0.4."
    with pytest.raises(UsageError) as caught:
        Option("--share", high=1, above=0).check(4000, "share")
    assert caught.value.hint == "Pass another --share."


def test_bytes_that_are_no_json_are_told_apart():
    with pytest.raises(ArtifactError, match="is a safetensors file"):
        parse(Mask, (2).to_bytes(8, "little") + b"{}" + b"\x00" * 9, "m")
    with pytest.raises(ArtifactError, match="not valid JSON"):
        parse(Mask, b"{", "m")
