"""Two ways to run the command line: in this process, and as a user does."""

import io
import json
import os
import signal
import subprocess
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import pytest
from helpers.paths import ROOT

QUICK = ("--samples", "8", "--probes", "1", "--batch-size", "4")
"""Options that make `optin score` take a blink: two batches."""


@dataclass(frozen=True)
class Run:
    """What a command left: its exit status, stdout and stderr."""

    code: int
    out: str
    err: str


class Watch:
    """Progress that hands every report of work to a function."""

    def __init__(self, function):
        self.update = function

    def count(self, samples):
        pass

    def read(self, data):
        pass

    def note(self, text):
        pass


def call(*args, stdin=b"") -> Run:
    """Run a command in this process: all that `optin` does, less the seconds that importing torch takes."""
    from optin_cli.cli.main import main

    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    terminate = signal.getsignal(signal.SIGTERM)
    try:
        with (
            patch.object(sys, "argv", ["optin", *map(str, args)]),
            patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8")),
            patch.dict(os.environ),
            warnings.catch_warnings(),
            redirect_stdout(out),
            redirect_stderr(err),
            pytest.raises(SystemExit) as stopped,
        ):
            main()
    finally:
        signal.signal(signal.SIGTERM, terminate)
    return Run(int(stopped.value.code or 0), *(stream.buffer.getvalue().decode() for stream in (out, err)))


def done(*args, **options) -> Run:
    """A call that must succeed."""
    result = call(*args, **options)
    assert result.code == 0, result.err
    return result


def command(*args):
    return [sys.executable, "-m", "optin_cli", *map(str, args)]


def environment(**extra):
    """The environment of a process that is to run the code of this checkout, wherever it works, on the CPU."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path, **extra}


def python(code, *args, cwd, **extra):
    """Run Python code in a process of its own."""
    line = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.run(line, cwd=cwd, env=environment(**extra), capture_output=True, text=True, check=False)


def run_cli(*args, cwd, input=None, env=None):
    """Run a command as a user does, in a process of its own."""
    line = command(*args)
    return subprocess.run(
        line, cwd=cwd, input=input, env=environment(**(env or {})), capture_output=True, text=True, check=False
    )


def tree(folder: Path):
    """Every path below a folder, and each file's bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def write_rows(path: Path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
