"""Long work says how far it is: a bar on a terminal, and a line now and then where there is none."""

import io
import re
import time
from unittest.mock import patch

from helpers.running import python
from rich.console import Console

from optin_cli.cli import common, pace


def test_a_log_has_a_line_every_half_minute(capsys):
    with patch("time.monotonic", return_value=100.0) as clock, common.progress("scoring") as progress:
        for now, done in ((100, 0), (120, 1), (140, 2), (150, 3), (170, 4), (171, 0), (200, 0), (240, 2)):
            clock.return_value = float(now)
            progress.update(done, 8, f"batch {done}")
    assert capsys.readouterr().err.splitlines() == [
        "scoring: 25%, about 0:02:00 left (batch 2)",
        "scoring: 50%, about 0:01:10 left (batch 4)",
        "scoring: 0% (batch 0)",
        "scoring: 25%, about 0:03:27 left (batch 2)",
    ]


def test_speed_is_that_of_the_step(capsys):
    with patch("time.monotonic", return_value=0.0) as clock, common.progress("scoring") as progress:
        for now, done, what in (
            (0, 0, "sketch"),
            (40, 4, "sketch"),
            (71, 0, "obs"),
            (101, 1, "obs"),
            (140, 2, "curves"),
        ):
            clock.return_value = float(now)
            progress.update(done, 8, what)
            clock.return_value += 10
            progress.count(20)
    assert capsys.readouterr().err.splitlines() == [
        "scoring: 50%, 2 samples/s, about 0:00:40 left (sketch)",
        "scoring: 0% (obs)",
        "scoring: 12%, 2 samples/s, about 0:03:30 left (obs)",
        "scoring: 25%, about 0:03:27 left (curves)",
    ]


def test_steps_that_report_nothing_are_said_too(capsys):
    with patch.object(pace, "SAY_EVERY", 0.05), common.progress("pruning"):
        time.sleep(0.2)
    said = capsys.readouterr().err.splitlines()
    assert len(said) >= 2 and set(said) == {"pruning: 0% (loading)"}


def test_nothing_is_shown_as_done_before_it_is(capsys):
    with patch("time.monotonic", return_value=0.0) as clock, common.progress("pruning") as progress:
        clock.return_value = 60.0
        progress.update(1, 1, "checking")
    assert capsys.readouterr().err == "pruning: 99%, about 0:00:01 left (checking)\n"


def test_a_bar_says_its_step_speed_and_time_left_in_one_line():
    drawn = io.StringIO()
    terminal = Console(file=drawn, force_terminal=True, width=60, color_system=None)
    with (
        patch.object(pace, "console", lambda **_: terminal),
        patch("time.monotonic", return_value=0.0) as clock,
        common.progress("scoring") as progress,
    ):
        progress.update(0, 4, "sketch of every head and neuron of the model")
        clock.return_value = 10.0
        progress.count(32)
        progress.update(1, 4, "sketch of every head and neuron of the model")
        progress.bar.refresh()
        shown = progress.bar.get_renderable()
        terminal.print(shown)
    (line,) = [line for line in drawn.getvalue().splitlines() if "3.2 samples/s, about 0:00:30 left" in line][-1:]
    assert "25%" in line and "scoring" in line and len(re.sub(r"\x1b\[[^A-Za-z]*[A-Za-z]", "", line)) <= 60


def test_the_first_line_comes_before_torch(tmp_path):
    """What a terminal shows of a command that has not imported torch yet."""
    code = (
        "import os, pty, select, sys, time\n"
        "pid, fd = pty.fork()\n"
        "if pid == 0:\n"
        "    os.execv(sys.executable, [sys.executable, '-c', CHILD])\n"
        "seen = b''\n"
        "while b'loading' not in seen:\n"
        "    seen += os.read(fd, 4096)\n"
        "os.kill(pid, 9)\n"
        "print('loading')\n"
    )
    child = (
        "import sys, time\n"
        "class Slow:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch': time.sleep(600)\n"
        "sys.meta_path.insert(0, Slow())\n"
        "sys.argv = ['optin', 'score', 'bert', '--calib', 'x.jsonl']\n"
        "from optin_cli.cli.main import main\n"
        "main()\n"
    )
    (tmp_path / "bert").mkdir()
    result = python(f"CHILD = {child!r}\n{code}", cwd=tmp_path, TERM="xterm", COLUMNS="80")
    assert result.stdout == "loading\n", result.stderr
