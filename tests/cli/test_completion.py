"""Shell completion: scripts to install, and the options and values that a shell is told."""

import json

import pytest
import typer
from helpers.running import python

from optin_cli.cli.main import app
from optin_cli.options.scoring import CRITERIA
from optin_cli.recipes.registry import recipes
from optin_cli.tasks.registry import task_names

COMMANDS = typer.main.get_command(app).commands
DETECTION = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}

RUN = """
import sys
sys.modules["torch"] = None  # or the shell waits for seconds
sys.argv = ["optin", *sys.argv[1:]]
from optin_cli.__main__ import main
main()
"""
MANY = """
import json, sys
sys.modules["torch"] = None
from typer.testing import CliRunner
from optin_cli.cli.main import app
told = {}
for words in json.loads(sys.argv[1]):
    asked = {"_OPTIN_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    told[words] = CliRunner().invoke(app, env=asked, prog_name="optin").stdout.split()
print(json.dumps(told))
"""
VALUES = {
    "optin ": [*COMMANDS],
    "optin eval x --task sst": ["sst2"],
    "optin eval x --task ": task_names(),
    "optin sweep x --task m": [name for name in task_names() if name.startswith("m")],
    "optin sweep x --recipe ": [*recipes()],
    "optin sweep x --recipe kp": ["kprune"],
    "optin sweep x --recipe optin,kp": ["optin,kprune"],
    "optin sweep x --recipe optin,optin": ["optin,optin-paper"],
    "optin score x --criterion ": [*CRITERIA],
    "optin score x --estimator h": ["hybrid"],
    "optin score x --units heads,n": ["heads,neurons"],
    "optin search x --algorithm p": ["paper"],
    "optin search x --layout ": ["per-layer", "uniform", "deci"],
    "optin tasks sst": ["sst2"],
    "optin recipes kp": ["kprune"],
    "optin export x --to ": ["onnx", "torch-export", "openvino", "gguf"],
    "optin export x --to torch": ["torch-export"],
}


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What bash is told after each of many beginnings of a command."""
    words = [*VALUES, *(f"optin {name} --" for name in COMMANDS)]
    result = python(MANY, json.dumps(words), cwd=tmp_path_factory.mktemp("told"))
    assert (result.returncode, result.stderr) == (0, "")
    return json.loads(result.stdout)


@pytest.mark.parametrize("words", VALUES)
def test_values_are_completed(told, words):
    assert told[words] == VALUES[words]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_completed(told, name):
    names = {o for p in COMMANDS[name].params for o in [*p.opts, *p.secondary_opts] if o.startswith("--")}
    assert names <= set(told[f"optin {name} --"])


def test_a_shell_that_asks_is_answered(here):
    words = "optin export small --to o"
    result = python(RUN, cwd=here, _OPTIN_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD="4")
    assert (result.returncode, result.stdout.split(), result.stderr) == (0, ["onnx", "openvino"], "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts_are_shown_for_every_shell(here, shell):
    result = python(RUN, "--show-completion", shell, cwd=here, **DETECTION)
    assert result.returncode == 0, result.stderr
    assert "_OPTIN_COMPLETE" in result.stdout


def test_a_script_is_installed(here):
    result = python(RUN, "--install-completion", "bash", cwd=here, HOME=str(here), **DETECTION)
    assert result.returncode == 0, result.stderr
    assert [p for p in here.rglob("*") if p.is_file() and "_OPTIN_COMPLETE" in p.read_text()]
