"""`optin score`: equal bytes, any order of lines, resumption, state dicts."""

import contextlib
import json
import subprocess
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from helpers.running import QUICK, Watch, call, command, done, environment
from safetensors.torch import load_file, save_file


def test_scores_go_to_stdout_and_from_stdin(work, made):
    result = subprocess.run(
        command("score", "bert", "--calib", "texts.jsonl", *QUICK, "-o", "-"),
        cwd=work,
        env=environment(),
        capture_output=True,
        check=True,
    )
    assert result.stdout == made.scores.read_bytes()
    assert b"it/s" not in result.stderr, "bars of libraries"
    assert not list(work.glob("*.partial"))
    piped = done("search", "-", "--keep-flops", "0.6", stdin=result.stdout)
    assert piped.out == "optin.mask.json\n"
    assert json.loads(Path("optin.mask.json").read_text())["groups"] == json.loads(made.mask.read_text())["groups"]


def scores(*args, output="s.safetensors"):
    done("score", "bert", "--calib", "texts.jsonl", *QUICK, *args, "-o", output, "--force")
    return Path(output).read_bytes()


def test_equal_runs_give_equal_scores(work, made):
    assert scores() == scores() == made.scores.read_bytes()
    assert scores("--seed", "1") != scores()


@pytest.mark.parametrize("samples", ["8", "100"])
def test_order_of_calibration_lines_does_not_matter(work, samples):
    whole = scores("--samples", samples)
    lines = work.joinpath("texts.jsonl").read_text().splitlines(keepends=True)
    work.joinpath("texts.jsonl").write_text("".join(lines[::-1]))
    assert scores("--samples", samples) == whole


@contextlib.contextmanager
def watched(stop=None):
    """Record what scoring reports; interrupt it once `stop` jobs are done."""
    told = []

    @contextlib.contextmanager
    def progress(title):
        def tell(done, total, what):
            if stop is not None and len(told) == stop:
                raise KeyboardInterrupt
            told.append((done, total, what))

        yield Watch(tell)

    with patch("optin_cli.cli.common.progress", progress):
        yield told


ONCE = ("--estimator", "sketch")


@pytest.mark.parametrize("extra", [ONCE, ("--estimator", "hybrid", "--exact-samples", "4"), ("--criterion", "fisher")])
def test_resumed_scores_are_those_of_one_run(work, extra):
    args = ["score", "bert", "--calib", "train.jsonl", *QUICK, "--batch-size", "2", *extra, "-o"]
    with watched() as told:
        done(*args, "whole.safetensors")
    jobs = len(told) - 1
    assert jobs >= 4
    for stop in {1, 3, jobs}:
        output = Path(f"after-{stop}.safetensors")
        partial = Path(f"{output}.partial")
        with watched(stop):
            result = call(*args, output)
        assert result.code == 130
        assert "--resume" in result.err and str(partial) in result.err and "Interrupted" in result.err
        assert partial.is_file() and not output.exists()
        with watched() as again:
            done(*args, output, "--resume")
        assert len(again) - 1 == jobs - stop, "finished batches were computed again"
        assert output.read_bytes() == Path("whole.safetensors").read_bytes()
        assert not partial.exists()


def test_resume_with_nothing_to_resume(work):
    assert scores("--resume") == scores()


@pytest.mark.parametrize(
    ("name", "wrap"),
    [
        ("bert.safetensors", lambda state: state),
        ("bert.pt", lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}),
        ("bert.ckpt", lambda state: {"model": {f"model.{k}": v for k, v in state.items()}}),
        ("bert.bin", lambda state: state),
    ],
)
def test_state_dict_files_score_as_their_folder_does(here, made, name, wrap):
    state = wrap(load_file(made.bert / "model.safetensors"))
    save_file(state, name) if name.endswith(".safetensors") else torch.save(state, name)
    args = ["--calib", made.texts, *QUICK, "--arch", made.bert if name != "bert.pt" else f"hf:{made.bert}"]
    assert done("score", name, *args).out == "bert.scores.safetensors\n"
    ours, folder = (load_file(path) for path in ("bert.scores.safetensors", made.scores))
    assert all(torch.equal(ours[k], folder[k]) for k in folder)


def test_streamed_scores_are_those_of_a_model_in_memory(work, made):
    assert scores("--stream") == made.scores.read_bytes()
    assert not list(work.glob("*.partial*"))
    result = call("score", "bert", "--calib", "texts.jsonl", *QUICK, "--stream", "--criterion", "wanda", "-o", "w")
    assert result.code == 2 and "the criterion wanda" in result.err and "--no-stream" in result.err


def test_streaming_is_chosen_for_large_weights_and_said(work, made):
    with patch("optin_cli.checkpoints.checkpoint.free_memory", lambda _device: 1000):
        run = done("score", "bert", "--calib", "texts.jsonl", *QUICK, "-o", "s")
        assert "bert is streamed, since" in run.err and Path("s").read_bytes() == made.scores.read_bytes()
        whole = done("score", "bert", "--calib", "texts.jsonl", *QUICK, "-o", "s", "--force", "--no-stream")
        other = done("score", "bert", "--calib", "texts.jsonl", *QUICK, "-o", "w", "--criterion", "wanda")
    assert "streamed" not in whole.err + other.err
