"""`optin shrink`: the same artifacts as the stages give, the gate, the smallest model, refusals."""

from pathlib import Path

import pytest
from helpers.running import call, done, tree

import optin_cli
from optin_cli.artifacts.base import parse
from optin_cli.artifacts.evaluation import Evaluation
from optin_cli.artifacts.mask import Mask
from optin_cli.checkpoints.folders import CARD
from optin_cli.errors import UsageError

QUICK = ("--samples", "16", "--batch-size", "8", "--latency-runs", "1")


def arguments(made, *more):
    return ("shrink", made.bert, "--calib", made.texts, *QUICK, *more)


def judged(made):
    return ("--task", "sst2", "--data", made.train)


def read(kind, path):
    return parse(kind, Path(path).read_bytes(), str(path))


def test_it_gives_what_the_stages_give(made, here):
    run = done(*arguments(made, *judged(made), "--keep-flops", "0.6", "-o", "small"))
    assert run.out == "small/\n"
    assert {path.name for path in here.iterdir()} == {
        "small",
        "small.scores.safetensors",
        "small.mask.json",
        "small.eval.json",
    }
    quick = QUICK[:-2]
    done("score", made.bert, "--calib", made.texts, *quick, "-o", "by.scores.safetensors")
    assert Path("by.scores.safetensors").read_bytes() == Path("small.scores.safetensors").read_bytes()
    done("search", "small.scores.safetensors", "--keep-flops", "0.6", "-o", "by.mask.json")
    assert read(Mask, "by.mask.json") == read(Mask, "small.mask.json")
    done("prune", made.bert, "--mask", "by.mask.json", "--calib", made.texts, *quick, "-o", "by")
    assert Path("by/model.safetensors").read_bytes() == Path("small/model.safetensors").read_bytes()
    result = read(Evaluation, "small.eval.json")
    assert result.metric.name == "accuracy" and result.against.macs_ratio <= 0.6
    assert "| accuracy |" in Path("small", CARD).read_text()
    assert "small.mask.json" in run.err and "optin report small/" in run.err


def test_without_a_task_it_measures_size_and_speed(made, here):
    run = done(*arguments(made, "--keep-flops", "0.7", "--json"))
    result = parse(Evaluation, run.out.encode(), "stdout")
    assert result.metric is None and result.against.macs_ratio <= 0.7 and result.latency is not None
    assert Path("bert-small/model.safetensors").is_file()


def test_a_share_that_loses_too_much_exits_with_3_and_keeps_the_result(made, here):
    # Among random weights the metric may well rise; a drop beyond the gate is made by the gate.
    run = call(*arguments(made, *judged(made), "--keep-flops", "0.2", "--max-drop", "0", "-o", "small"))
    drop = read(Evaluation, "small.eval.json").against.drop
    assert run.code == (3 if drop > 0 else 0)
    assert ("gate not met" in run.err) == (drop > 0)
    assert Path("small/model.safetensors").is_file()


def test_the_smallest_model_within_a_drop(made, here):
    run = done(*arguments(made, *judged(made), "--max-drop", "1", "--evaluations", "2", "-o", "small"))
    assert run.out == "small/\n"
    assert Path("small/model.safetensors").read_bytes() == Path("small.sweep/model/model.safetensors").read_bytes()
    assert read(Mask, "small.mask.json") == read(Mask, "small.sweep/mask.json")
    assert read(Evaluation, "small.eval.json").against.drop <= 1


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ((), "No budget was given"),
        (("--max-drop", "0.01"), "Pass --task"),
        (("--keep-flops", "1.5"), "share of macs to keep is 1.5"),
        (("--max-drop", "0.01", "--task", "sst2", "--layout", "uniform"), "every unit and layout"),
        (("--keep-flops", "0.5", "--samples", "4"), "too few to refit"),
        (("--keep-flops", "0.5", "-o", "-"), "cannot go to stdout"),
    ],
)
def test_refusals_come_before_any_work(made, here, more, words):
    run = call("shrink", made.bert, "--calib", made.texts, *more)
    assert run.code == 2
    assert words in run.err
    assert tree(here) == {}


@pytest.mark.parametrize("name", ["small.mask.json", "small.eval.json", "small.scores.safetensors", "small"])
def test_nothing_is_overwritten_without_force(made, here, name):
    Path(name).mkdir() if name == "small" else Path(name).write_text("mine")
    run = call(*arguments(made, "--keep-flops", "0.6", "-o", "small"))
    assert run.code == 1 and f"{name} already exists" in run.err


def test_the_api_takes_paths(made, here):
    options = optin_cli.ShrinkOptions(
        keep_flops=0.6,
        scoring=optin_cli.ScoreOptions(samples=16, batch_size=8),
        evaluation=optin_cli.EvalOptions(latency_runs=0),
    )
    stages = []
    result = optin_cli.shrink(made.bert, made.texts, "small", options, report=stages.append)
    assert stages == list(result.seconds) == ["score", "search", "prune", "eval"]
    assert result.manifest.after.macs <= 0.6 * result.manifest.before.macs
    with pytest.raises(UsageError, match="fall of a task's metric"):
        optin_cli.shrink(made.bert, made.texts, "other", optin_cli.ShrinkOptions(max_drop=0.1))
