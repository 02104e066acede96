"""The README's workflow for users' CI: valid, and its shell steps do what it says on a tiny model."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers.paths import ROOT
from helpers.running import environment


@pytest.fixture(scope="module")
def job():
    found = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert found, "the README documents no workflow"
    raw = yaml.safe_load(found[0])
    assert raw.keys() == {"name", True, "jobs"}, "YAML reads the key on as true, and GitHub knows"
    (only,) = raw["jobs"].values()
    return only


def test_the_workflow_installs_sweeps_evaluates_and_reports(job):
    assert job["runs-on"] and all(("run" in step) != ("uses" in step) for step in job["steps"])
    lines = [step["run"] for step in job["steps"] if "run" in step]
    for words in ("pip install", "optin sweep", "--max-drop", "optin eval", "optin report"):
        assert any(words in line for line in lines), words
    assert job["steps"][-1]["uses"].startswith("actions/upload-artifact")
    assert job["steps"][-1]["if"] == "always()"


def test_the_shell_steps_run(job, made, here):
    shutil.copytree(made.bert, "model")
    Path("data").mkdir()
    shutil.copyfile(made.texts, "data/train.jsonl")
    shutil.copyfile(made.train, "data/validation.jsonl")
    Path("bin").mkdir()
    command = Path("bin/optin")
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m optin_cli "$@"\n')
    command.chmod(0o755)
    env = environment(PATH=f"{here / 'bin'}:{os.environ['PATH']}")
    for step in job["steps"]:
        script = step.get("run", "")
        if script and "pip install" not in script:
            lenient = re.sub(r"--max-drop [\d.]+", "--max-drop 1 --latency-runs 1", script)
            lenient = lenient.replace("optin sweep", "optin sweep --evaluations 1")
            line = ["bash", "-eo", "pipefail", "-c", lenient]
            result = subprocess.run(line, cwd=here, env=env, capture_output=True, text=True, check=False)
            assert result.returncode == 0, result.stderr
    paths = job["steps"][-1]["with"]["path"].split()
    assert all(Path(path).exists() for path in paths)
    assert "Frontier" in Path("report.html").read_text() and "Certificate" in Path("report.html").read_text()
    assert "| accuracy |" in Path("shrunk/model/README.md").read_text()
