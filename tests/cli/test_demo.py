"""`optin demo`: what it leaves and prints, and its interruption."""

import errno
from pathlib import Path
from unittest.mock import patch

from helpers.running import call, done

from optin_cli.artifacts.base import parse
from optin_cli.artifacts.evaluation import Evaluation


def test_the_demo_leaves_its_artifacts_and_halves_the_macs(here):
    result = done("demo", "show")
    artifacts = ("profile.json", "scores.safetensors", "mask.json")
    names = [*(f"bert-sst2.{a}" for a in artifacts), "bert-sst2-pruned", "bert-sst2-pruned.eval.json"]
    assert {*names, "bert-sst2", "train.jsonl", "validation.jsonl"} == {p.name for p in (here / "show").iterdir()}
    assert all(f"$ optin {name}" in result.err for name in ("profile", "score", "search", "prune", "eval"))
    assert all(word in result.out for word in ("before", "after", "accuracy", "MACs", "latency"))
    report = parse(Evaluation, (here / "show" / names[-1]).read_text(), "eval")
    assert report.against.macs_ratio <= 0.5 and report.against.drop < 0.05
    assert call("demo", "show").code == 1


def test_interrupting_the_demo_stops_it(here):
    with patch("optin_cli.checkpoints.checkpoint.load", side_effect=KeyboardInterrupt) as load:
        result = call("demo", "show")
    assert result.code == 130 and load.call_count == 1
    assert "Interrupted" in result.err
    assert Path.cwd() == here
    assert not (here / "show").exists(), "half a demo stands in the way of the next"


def test_a_full_disk_is_said_and_leaves_no_half_demo(here):
    with patch("shutil.copyfile", side_effect=OSError(errno.ENOSPC, "No space left on device")):
        result = call("demo", "show")
    assert result.code == 1 and "No space is left" in result.err
    assert not (here / "show").exists()


def test_a_failing_stage_leaves_what_was_in_the_folder_before(here):
    (here / "show").mkdir()
    (here / "show" / "mine.txt").write_text("mine")
    with patch("optin_cli.checkpoints.checkpoint.load", side_effect=KeyboardInterrupt):
        assert call("demo", "show", "--force").code == 130
    assert (here / "show" / "mine.txt").read_text() == "mine"
