"""The commands of a report: they make the artifacts again, and every flag is one."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
import typer
from helpers.running import QUICK, done, tree, write_rows

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


def test_the_commands_of_a_sweep_make_its_artifacts_again(here, made):
    """As in the README's workflow: original and cut model have one name, the data lies in a folder of its own."""
    for folder in (Path(), Path("fresh")):
        (folder / "data").mkdir(parents=True)
        shutil.copytree(made.bert, folder / "model")
        shutil.copyfile(made.texts, folder / "data/texts.jsonl")
        shutil.copyfile(made.train, folder / "data/train.jsonl")
    data = ("--task", "sst2", "--data", "data/train.jsonl", "--latency-runs", "0")
    limit = ("--max-drop", "1", "--evaluations", "1", "--samples", "16")
    done("sweep", "model", "--calib", "data/texts.jsonl", *data, *limit, "-o", "shrunk")
    done("eval", "shrunk/model", *data, "--against", "model", "-o", "shrunk/eval.json")
    facts = json.loads(done("report", "shrunk", "--json").out)
    page = Path("shrunk.report.html").read_text(encoding="utf-8")
    assert facts["title"] == "model, pruned"
    assert '<th scope="col" class="num">pruned</th><th scope="col" class="num">original</th>' in page
    assert "MACs by layer</h2>\n<p>Of what can be pruned" in page and "Importance is not shown" not in page
    words = [shlex.split(line) for line in facts["commands"]]
    assert [line[1:3] for line in words] == [["sweep", "model"], ["eval", "shrunk/model"]]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir("fresh")
        for line in words:
            done(*line[1:])
    for name in ("mask.json", "masks/optin-0.5.json", "optin.scores.safetensors", "model/model.safetensors"):
        assert Path("fresh/shrunk", name).read_bytes() == Path("shrunk", name).read_bytes(), name
    again, first = (read(Evaluation, folder / "shrunk/eval.json") for folder in (Path("fresh"), Path()))
    assert again == first


def test_the_commands_name_columns_and_tasks_as_the_user_did(here, made):
    shutil.copytree(made.bert, "bert")
    rows = [json.loads(line) for line in made.train.read_text().splitlines()]
    write_rows(
        Path("own.jsonl"), [{"id": str(n), "said": r["sentence"], "mood": r["label"]} for n, r in enumerate(rows)]
    )
    columns = ("--text-columns", "said")
    done("score", "bert", "--calib", "own.jsonl", *columns, *QUICK)
    done("search", "bert.scores.safetensors", "--keep-flops", "0.6")
    done("prune", "bert", "--mask", "bert.mask.json", "--samples", "16")
    labels = ("--data", "own.jsonl", *columns, "--label-column", "mood", "--latency-runs", "0")
    done("eval", "bert-pruned", *labels, "--against", "bert")
    facts = json.loads(done("report", "bert-pruned", "--json").out)
    assert [line.split()[1] for line in facts["commands"]] == ["score", "search", "prune", "eval"]
    assert all("--text-columns said" in line for line in facts["commands"] if " search " not in line)
    assert "--label-column mood" in facts["commands"][-1]
    before = tree(Path("bert-pruned"))
    for line in facts["commands"]:
        done(*shlex.split(line)[1:], "--force")
    assert tree(Path("bert-pruned")) == before


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
