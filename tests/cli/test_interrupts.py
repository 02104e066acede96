"""Ctrl-C and SIGTERM in real processes: exit status, what remains, and what resumes."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from unittest.mock import patch

import pytest
from helpers.running import call, command, done, environment, python, tree, write_rows
from safetensors import SafetensorError

from optin_cli.cli import interrupts


def wait_for(found, process, seconds=60):
    end = time.monotonic() + seconds
    while not found():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)


def test_ctrl_c_and_resume_for_real(work):
    write_rows(work / "many.jsonl", [{"text": f"{'a b c d ' * (1 + i % 6)}"} for i in range(24)])
    options = ["score", "bert", "--calib", "many.jsonl", "--batch-size", "1", "--probes", "2"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command(*options), cwd=work, env=environment(), **streams) as process:
        wait_for((work / "bert.scores.safetensors.partial").exists, process)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert "Interrupted" in err and "--resume" in err and "Traceback" not in err
    assert {p.name for p in work.glob("*scores*")} == {"bert.scores.safetensors.partial"}
    assert done(*options, "--resume").out == "bert.scores.safetensors\n"
    assert {p.name for p in work.glob("*scores*")} == {"bert.scores.safetensors"}
    done(*options, "-o", "whole.safetensors")
    assert Path("whole.safetensors").read_bytes() == Path("bert.scores.safetensors").read_bytes()


def block_of(record):
    """The block that a streamed prune has come to, None at its beginning."""
    return json.loads(record.read_text())["block"] if record.exists() else None


def test_a_streamed_prune_that_is_killed_resumes(work):
    write_rows(work / "many.jsonl", [{"text": "a b c d " * (1 + row % 6)} for row in range(64)])
    done("score", "bert", "--calib", "many.jsonl", "--units", "heads,neurons", "--probes", "1")
    done("search", "bert.scores.safetensors", "--keep-flops", "0.5")
    options = ("prune", "bert", "--mask", "bert.mask.json", "--stream", "--batch-size", "1")
    with subprocess.Popen(command(*options), cwd=work, env=environment(), stderr=subprocess.DEVNULL) as process:
        wait_for(lambda: block_of(work / "bert-pruned.partial" / "run.json"), process)
        process.kill()
    assert not (work / "bert-pruned").exists()
    assert done(*options, "--resume").out == "bert-pruned/\n"
    assert not (work / "bert-pruned.partial").exists()
    done(*options, "-o", "whole")
    assert tree(work / "bert-pruned") == tree(work / "whole")
    refusal = call(*options[:4], "-o", "other", "--resume", "--no-stream")
    assert refusal.code == 2 and "only streamed runs keep what is finished" in refusal.err


SWALLOWED = """
import os, signal, weakref
from optin_cli.cli import common, interrupts
interrupts.watch()
class Thing: pass
thing = Thing()
# Python drops what a weak reference's callback raises.
kept = weakref.ref(thing, lambda _: os.kill(os.getpid(), getattr(signal, SIGNAL)))
del thing
try:
    with common.progress("scoring") as progress:
        progress.update(0, 1, "")
except KeyboardInterrupt:
    print("ended")
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_an_interruption_that_a_library_swallows_ends_the_run(here, name):
    result = python(SWALLOWED.replace("SIGNAL", repr(name)), cwd=here)
    assert "ignored" in result.stderr and result.stdout == "ended\n"


def test_signals_in_quick_succession_are_one(monkeypatch):
    handler = interrupts.Interrupted()
    with pytest.raises(KeyboardInterrupt):
        handler(signal.SIGINT, None)
    handler(signal.SIGTERM, None)
    assert handler.pending
    monkeypatch.setattr(interrupts, "GRACE", 0.0)
    with pytest.raises(KeyboardInterrupt):
        handler(signal.SIGINT, None)
    handler.ended = True
    handler(signal.SIGINT, None)


@pytest.mark.parametrize(
    ("args", "closed", "code"),
    [
        ("inspect none.json", "<&- >&- 2>&-", 1),
        ("inspect none.json", ">&-", 1),
        ("inspect -", "<&-", 1),
        ("--version", ">&-", 0),
    ],
)
def test_closed_streams_are_no_defect(here, args, closed, code):
    line = f"{' '.join(command())} {args} {closed}"
    result = subprocess.run(line, shell=True, cwd=here, env=environment(), capture_output=True, text=True, check=False)
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr and "defect" not in result.stderr


def test_termination_while_certifying_leaves_nothing(work, made):
    args = command("prune", "bert", "--mask", made.mask, "--no-refit")
    before = tree(work)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(args, cwd=work, env=environment(), **streams) as process:
        wait_for(lambda: list(work.glob(".bert-pruned.*/modeling_optin.py")), process)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert "Interrupted" in err and "Traceback" not in err
    assert tree(work) == before


def test_an_interruption_that_a_library_turns_into_an_error_is_one(made, here):
    def load(_path):
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            raise SafetensorError("could not determine the shape") from None

    with patch("optin_cli.checkpoints.weights.load_file", load):
        result = call("profile", made.bert)
    assert result.code == 130 and result.err.endswith("Interrupted.\n"), result.err
