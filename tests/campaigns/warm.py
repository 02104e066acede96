"""Runs of `optin` in forks of one process that has everything imported: milliseconds instead of seconds each.

A run has its own working folder, streams and temporary folder; the parent watches its time and memory.
"""

import contextlib
import importlib
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path

from campaigns.reload_socket import ask

SECONDS, BYTES = 60.0, 3 << 30
"""The most that a run on tiny input may take."""
LIBRARIES = ("optin_cli", "torch", "transformers", "timm", "safetensors", "numpy", "onnx", "onnxscript", "onnxruntime")
"""Of what a run imports of these, and of their like, the parent learns for the runs that follow."""


@dataclass(frozen=True)
class Outcome:
    """What a run left: its exit status (-N of a signal, None if it was stopped for its time), streams, and cost."""

    code: int | None
    out: str
    err: str
    seconds: float
    peak: int

    @property
    def problem(self):
        """What no input and no instant may cause; None where there is nothing of the kind."""
        if self.code is None:
            return f"more than {SECONDS:.0f} s"
        if self.peak > BYTES or "Not enough memory" in self.err:
            return f"{self.peak >> 20} MB of memory"
        for words in ("Traceback", "defect of optin", "Exception ignored"):
            if words in self.err:
                return f"{words}: {self.err.strip().splitlines()[-1][:200]}"
        if "\x1b" in self.out + self.err or "\u202e" in self.out + self.err:
            return "control characters on the terminal"
        return None


class Warm:
    """The parent of all runs. socket: of the reload server; scratch: where runs have their temporary files."""

    def __init__(self, socket, scratch):
        self.socket, self.scratch = socket, Path(scratch)
        self.scratch.mkdir(parents=True, exist_ok=True)
        importlib.import_module("optin_cli.cli.main")

    def learn(self, *args, cwd):
        """Run a command that must succeed, and import here what it imported."""
        names = self.scratch / "modules"
        outcome = self.run(*args, cwd=cwd, seconds=600, after=lambda: names.write_text("\n".join(sys.modules)))
        assert outcome.code == 0, f"{args}: {outcome}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name in sorted(set(names.read_text().splitlines()) - set(sys.modules)):
                if name.startswith(LIBRARIES):
                    with contextlib.suppress(Exception):
                        importlib.import_module(name)
        return outcome

    def run(self, *args, cwd, seconds=SECONDS, before=None, after=None, signals=()):
        """Run a command in a fork.

        Args:
            before, after: called in the fork. signals: pairs of seconds and a signal, in the order in which to send.
        """
        begin, start = time.monotonic(), resident(os.getpid())
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            sys.stdout.flush()
            sys.stderr.flush()
            child = os.fork()
            if child == 0:
                self._become(args, cwd, out.fileno(), err.fileno(), before, after)
            code, peak = watch(child, begin, seconds, start, list(signals))
            texts = []
            for stream in (out, err):
                stream.seek(0)
                texts.append(stream.read().decode(errors="replace"))
        return Outcome(code, *texts, time.monotonic() - begin, peak)

    def _become(self, args, cwd, out, err, before, after):
        """Be the command; never returns."""
        code = 70
        try:
            os.setsid()
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(out, 1)
            os.dup2(err, 2)
            sys.stdin, sys.stdout, sys.stderr = (
                open(number, mode, encoding="utf-8", errors=errors, closefd=False)  # noqa: SIM115
                for number, mode, errors in ((0, "r", "strict"), (1, "w", "strict"), (2, "w", "backslashreplace"))
            )
            os.chdir(cwd)
            tempfile.tempdir = str(self.scratch)
            warnings.resetwarnings()
            sys.argv = ["optin", *map(str, args)]
            code = self._call(before)
            if after is not None:
                after()
            sys.stdout.flush()
            sys.stderr.flush()
        except BaseException:  # noqa: BLE001 - the fork must end here
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(code)

    def _call(self, before):
        import optin_cli.checkpoints.fresh
        from optin_cli.cli.main import main

        optin_cli.checkpoints.fresh.fresh_process = lambda *request: ask(self.socket, *request)
        if before is not None:
            before()
        try:
            main()
        except SystemExit as stop:
            return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1


def resident(process):
    """Bytes of memory that a process holds."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * resource.getpagesize()
    except (OSError, IndexError, ValueError):
        return 0


def watch(child, begin, seconds, start, signals):
    """Wait for a child, send it signals, and stop it when it takes too much; its status and most memory."""
    peak, pause = 0, 0.002
    while True:
        while signals and time.monotonic() - begin >= signals[0][0]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signals.pop(0)[1])
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status), peak
        peak = max(peak, resident(child) - start)
        late = time.monotonic() - begin > seconds
        if late or peak > BYTES * 1.3:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return (None, peak) if late else (-signal.SIGKILL, peak)
        soon = signals[0][0] - (time.monotonic() - begin) if signals else pause
        time.sleep(max(0.0003, min(pause, soon)))
        pause = min(pause * 1.3, 0.05)
