"""Commands that several processes share: by torchrun, and by parts."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from helpers.desk import refused
from helpers.running import call, done, environment, tree, write_rows
from helpers.sharing import torchrun

LONG = ("score", "bert", "--calib", "many.jsonl", "--batch-size", "1", "--probes", "8")


@pytest.fixture
def many(work):
    write_rows(work / "many.jsonl", [{"text": f"{'a b c d ' * (1 + i % 6)}"} for i in range(96)])
    return work


def started(*line, cwd):
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(line, cwd=cwd, env=environment(), **streams)


def workers(launcher):
    """Process ids of the workers of a launcher, by rank."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int(path.joinpath("stat").read_text().rpartition(")")[2].split()[1])
            variables = dict(v.split("=", 1) for v in path.joinpath("environ").read_text().split("\0") if "=" in v)
        except (OSError, ValueError):
            continue
        if parent == launcher.pid and "RANK" in variables:
            found[int(variables["RANK"])] = int(path.name)
    return found


def test_two_processes_write_what_one_does_and_speak_with_one_voice(many):
    result = subprocess.run(
        torchrun(2, *LONG), cwd=many, env=environment(), capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "bert.scores.safetensors\n"
    done(*LONG, "-o", "alone.safetensors")
    assert Path("bert.scores.safetensors").read_bytes() == Path("alone.safetensors").read_bytes()
    assert not list(many.glob("*.partial"))


def test_a_process_that_is_killed_ends_the_others_and_the_run_resumes(many):
    with started(*torchrun(2, *LONG), cwd=many) as launcher:
        end = time.monotonic() + 300
        while not (many / "bert.scores.safetensors.partial").exists():
            assert launcher.poll() is None, launcher.communicate()
            assert time.monotonic() < end
            time.sleep(0.01)
        os.kill(workers(launcher)[1], signal.SIGKILL)
        out, err = launcher.communicate(timeout=120)
    assert launcher.returncode and out == ""
    assert err.count("error: ") == 1 and "process of this run has ended" in err and "--resume" in err
    assert {path.name for path in many.glob("*scores*")} == {"bert.scores.safetensors.partial"}
    done(*LONG, "--resume")
    done(*LONG, "-o", "whole.safetensors")
    assert Path("bert.scores.safetensors").read_bytes() == Path("whole.safetensors").read_bytes()


def test_two_processes_evaluate_as_one_does(work):
    command = ("eval", "bert", "--task", "sst2", "--data", "train.jsonl", "--batch-size", "5", "--latency-runs", "0")
    result = subprocess.run(
        torchrun(2, *command, "-o", "two.json"),
        cwd=work,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout) == (0, "two.json\n"), result.stderr
    done(*command, "-o", "one.json")
    assert Path("two.json").read_bytes() == Path("one.json").read_bytes()


def test_two_processes_prune_as_one_does(work):
    done("score", "bert", "--calib", "train.jsonl", "--probes", "1")
    done("search", "bert.scores.safetensors", "--keep-flops", "0.5", "-o", "mask.json")
    command = ("prune", "bert", "--mask", "mask.json", "--batch-size", "5")
    result = subprocess.run(
        torchrun(2, *command, "-o", "two"), cwd=work, env=environment(), capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout) == (0, "two/\n"), result.stderr
    assert result.stderr.count("adjusted") == 1
    done(*command, "-o", "one")
    assert tree(work / "two") == tree(work / "one")
    refusal = subprocess.run(
        torchrun(2, *command, "--stream", "-o", "three"),
        cwd=work,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert refusal.returncode and refusal.stderr.count("error: A run that is shared is not streamed.") == 1


@pytest.mark.parametrize("args", [("search", "none.safetensors"), ("score", "none", "--calib", "sst2")])
def test_what_fails_in_two_processes_is_said_once(work, args):
    result = subprocess.run(
        torchrun(2, *args), cwd=work, env=environment(), capture_output=True, text=True, check=False
    )
    assert result.returncode and result.stdout == ""
    assert result.stderr.count("error: ") == 1
    assert ("started in 2 processes" if args[0] == "search" else "none") in result.stderr


def test_parts_are_scored_shown_and_merged(work):
    command = ("score", "bert", "--calib", "train.jsonl", "--batch-size", "3", "--probes", "1")
    names = [done(*command, "--shard", f"{number}/4").out.strip() for number in range(1, 5)]
    assert names[1] == "bert.2-of-4.part.safetensors"
    shown = done("inspect", names[1]).out
    assert "part 2/4 of trajectory scores" in shown and "optin.part/1" in shown
    assert '"shard": 2' in done("inspect", names[1], "--json").out
    assert done("merge", *names).out == "bert.scores.safetensors\n"
    done(*command, "-o", "whole.safetensors")
    assert Path("bert.scores.safetensors").read_bytes() == Path("whole.safetensors").read_bytes()
    assert "is a part file" in call("search", names[0], "--keep-flops", "0.5").err


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("score", "bert", "--calib", "texts.jsonl", "--shard", "0/2"), 2, ["expected I/N", "2/8"]),
        (("score", "bert", "--calib", "texts.jsonl", "--shard", "1/2", "-o", "-"), 2, ["does not go to stdout"]),
        (("score", "bert", "--calib", "texts.jsonl", "--shard", "1/2", "--resume"), 2, ["--resume is for whole runs"]),
        (("score", "bert", "--calib", "texts.jsonl", "--shard", "1/9"), 2, ["shared by 9", "8 portions"]),
        (("merge", "texts.jsonl"), 1, ["texts.jsonl is not a part of scores"]),
        (("merge", "none.safetensors"), 1, ["none.safetensors cannot be read as a part file"]),
        (("merge",), 2, ["PART"]),
    ],
)
def test_wrong_parts_are_refused(work, args, code, words):
    refused(work, args, code, words)
