"""`optin tasks`, `optin families`, `optin recipes` and `optin env`."""

import json

import pytest
import torch
from helpers.running import call, done, python

import optin_cli
from optin_cli.architectures.registry import known_families, parse_architecture
from optin_cli.options.sweep import RECIPES
from optin_cli.recipes.registry import recipes
from optin_cli.tasks.registry import load_task, task_names
from optin_cli.tasks.schema import Task

NAMES = {"tasks": task_names(), "families": [*known_families()], "recipes": [*RECIPES]}


@pytest.mark.parametrize("command", NAMES)
def test_lists_name_everything(command):
    text = done(command).out
    assert not [name for name in NAMES[command] if f" {name} " not in text]
    assert len(json.loads(done(command, "--json").out)) == len(NAMES[command])


@pytest.mark.parametrize("command", NAMES)
def test_everything_is_explained(command):
    for name in NAMES[command]:
        assert done(command, name).out.startswith(f"{name}: ")


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("tasks", "sst"), 1, "Did you mean sst2"),
        (("families", "berd"), 1, "Did you mean bert"),
        (("recipes", "wandas"), 2, "Did you mean wanda"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(args, code, words):
    run = call(*args)
    assert run.code == code and words in run.err


def test_a_task_says_its_data_and_columns():
    text = done("tasks", "sst2").out
    assert all(words in text for words in ("nyu-mll/glue sst2", "text columns: sentence", "negative, positive"))
    assert "your own, --data PATH" in done("tasks", "classification").out
    assert Task.model_validate(json.loads(done("tasks", "squad", "--json").out)) == load_task("squad")


def test_a_family_is_found_by_model_type_and_gives_a_description_to_start_from(here):
    text = done("families", "xlm-roberta").out
    assert text.startswith("roberta: ") and "heads, neurons, head-dims, blocks" in text
    (here / "mine.json").write_text(done("families", "bert", "--json").out)
    assert parse_architecture(here / "mine.json") == known_families()["bert"]


def test_recipes_are_those_that_sweep_runs():
    assert [*RECIPES] == [*recipes()]
    assert all(("needs labels" in RECIPES[name]) == recipe.needs_labels for name, recipe in recipes().items())


@pytest.mark.parametrize("command", NAMES)
def test_lists_need_no_torch(here, command):
    code = "import sys; sys.modules['torch'] = None\nfrom optin_cli.cli.main import main\nmain()"
    assert python(code, command, cwd=here).returncode == 0


def test_env_says_what_a_bug_report_needs():
    found = json.loads(done("env", "--json").out)
    assert found["optin"] == optin_cli.__version__ and found["threads"] == torch.get_num_threads()
    assert found["packages"].get("torch", torch.__version__).startswith(torch.__version__.partition("+")[0])
    text = done("env").out
    assert all(f"{word}: " in text for word in ("optin", "python", "system", "processors", "cpu", "gpu"))


def test_env_works_where_torch_does_not(here):
    code = "import sys; sys.modules['torch'] = None\nfrom optin_cli.cli.main import main\nmain()"
    result = python(code, "env", cwd=here)
    assert result.returncode == 0 and "torch cannot be imported" in result.stdout
