"""Some interruptions of every stage; `run.py` tries many."""

import subprocess
import sys
from pathlib import Path

from helpers.running import environment

RUN = Path(__file__).with_name("run.py")
KILLS, STAGES = 24, "score,prune,eval"
"""Of three stages of eight, so that nine of the kills are tried."""


def test_stopped_runs_leave_whole_outputs(made, tmp_path):
    line = [
        sys.executable,
        str(RUN),
        "--mutations",
        "0",
        "--kills",
        str(KILLS),
        "--only",
        STAGES,
        "--made",
        str(made.root),
    ]
    done = subprocess.run(
        [*line, "--work", str(tmp_path)], env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 mutations, 9 kills, 0 faults" in done.stdout
