"""The commands of a report: they make the artifacts again, and every flag is one."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
import typer
from helpers.running import done, tree

from optin_cli.artifacts.base import parse
from optin_cli.artifacts.evaluation import Evaluation
from optin_cli.artifacts.scores import read_scores
from optin_cli.cli.main import app
from optin_cli.options.declare import declared
from optin_cli.options.evaluation import EvalOptions
from optin_cli.options.refit import RefitOptions
from optin_cli.options.scoring import ScoreOptions
from optin_cli.options.search import BudgetOptions, SearchOptions
from optin_cli.options.sweep import SweepOptions
from optin_cli.reporting import commands


def read(kind, path):
    return parse(kind, Path(path).read_bytes(), str(path))


def test_the_commands_make_the_artifacts_again(work, made):
    facts = json.loads(done("report", "bert-pruned", "--json").out)
    Path("fresh").mkdir()
    for source in (made.bert, made.texts, made.train):
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, Path("fresh", source.name))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir("fresh")
        for line in facts["commands"]:
            done(*shlex.split(line)[1:])
    for name in ("bert.scores.safetensors", "bert.mask.json"):
        assert Path("fresh", name).read_bytes() == Path(name).read_bytes()
    assert tree(Path("fresh/bert-pruned")) == tree(Path("bert-pruned"))
    again, first = (read(Evaluation, folder / "bert-pruned.eval.json") for folder in (Path("fresh"), Path()))
    assert (again.metrics, again.options, again.inputs) == (first.metrics, first.options, first.inputs)


def recorded_as_score(options, **more):
    """The words of a score command for recorded options."""
    scores = read_scores("bert.scores.safetensors")
    header = scores.header.model_copy(update={"options": options, **more})
    return commands.words_of(ScoreOptions, header.options, header, ScoreOptions().recorded())


def test_every_flag_of_the_commands_is_one():
    known = typer.main.get_command(app).commands
    for name, *kinds in (
        ("score", ScoreOptions),
        ("search", SearchOptions, BudgetOptions),
        ("prune", RefitOptions),
        ("eval", EvalOptions),
        ("sweep", SweepOptions),
    ):
        options = {option for parameter in known[name].params for option in parameter.opts}
        assert {one.flag for kind in kinds for one in declared(kind)} <= options


def test_every_constant_of_a_score_has_a_flag():
    assert [one.key for one in declared(ScoreOptions)] == [*ScoreOptions().recorded()]


def test_an_option_turned_off_is_said(work):
    options = read_scores("bert.scores.safetensors").header.options
    words = recorded_as_score({**options, "token_exchange": None})
    assert words[words.index("--balance-at") + 1] == "none"
    assert "--max-length" not in words
    assert "--balance-at" not in recorded_as_score(options)


def test_another_version_says_its_defaults(work):
    options = ScoreOptions().recorded()
    assert recorded_as_score(options) == []
    told = recorded_as_score(options, optin_version="0.0.1")
    assert told[:4] == ["--criterion", "trajectory", "--units", "heads,neurons,channels,experts,head-dims"]
    assert "--seq-len" not in told and "--max-length" not in told
