"""The command line: names, streams, exit statuses, help, and runs that are interrupted and resumed."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import transformers
import typer
from helpers.paths import ROOT
from helpers.running import QUICK, call, command, done, environment, python, run_cli, tree, write_rows
from safetensors.torch import load_file, save_file

import optin_cli
from optin_cli.architectures.registry import FOLDER
from optin_cli.artifacts.base import Source, parse
from optin_cli.artifacts.costs import Profile
from optin_cli.artifacts.evaluation import Evaluation
from optin_cli.artifacts.manifest import Manifest
from optin_cli.artifacts.mask import Mask
from optin_cli.artifacts.reading import artifacts_in
from optin_cli.artifacts.scores import ScoresHeader
from optin_cli.checkpoints.checkpoint import load as load_checkpoint
from optin_cli.checkpoints.folders import folder_source
from optin_cli.cli.main import app
from optin_cli.files import sha256_of
from optin_cli.model.masking import masked

SIZES = ("--latency-runs", "0")
COMMANDS = typer.main.get_command(app).commands


@pytest.fixture
def work(here, made):
    """A working directory with the checkpoint and the data, under their own names."""
    shutil.copytree(made.bert, here / "bert")
    for path in (made.train, made.texts):
        shutil.copyfile(path, here / path.name)
    return here


def options(name):
    return [p for p in COMMANDS[name].params if p.name != "help"]


# Names, streams and statuses


def test_a_whole_run_by_default_names(work):
    stages = [
        (["score", "bert", "--calib", "texts.jsonl", *QUICK], "bert.scores.safetensors"),
        (["search", "bert.scores.safetensors", "--keep-flops", "0.6"], "bert.mask.json"),
        (["prune", "bert", "--mask", "bert.mask.json"], "bert-pruned/"),
        (["eval", "bert", "--task", "sst2", "--data", "train.jsonl", "--latency-runs", "2"], "bert.eval.json"),
    ]
    for args, output in stages:
        before = set(tree(work))
        result = call(*args)
        assert (result.code, result.out) == (0, f"{output}\n"), result.err
        new = {name for name in set(tree(work)) - before if "/" not in name}
        assert new == {output.rstrip("/")}
    assert {p.stat().st_mode & 0o777 for p in (work / "bert-pruned").iterdir()} == {0o666 & ~umask()}


def umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize(
    ("source", "output"),
    [
        ("bert.safetensors", "bert"),
        ("folder/bert.ckpt", "bert"),
        ("bert", "bert"),
        ("bert/", "bert"),
        ("./folder/../bert", "bert"),
        ("org/bert", "bert"),
        ("bert-v1.5.pt", "bert-v1.5"),
        ("bert-v1.5", "bert-v1.5"),
        ("bert.scores.safetensors", "bert"),
        ("-", "optin"),
    ],
)
def test_names_of_outputs(work, source, output):
    (work / "folder").mkdir()
    from optin_cli.cli.common import stem_of

    assert stem_of(source) == output


def test_pipes(work, made):
    """As in the README: search to prune through a pipe, eval to a reader of JSON."""
    line = " ".join(command())
    script = (
        f"{line} search {made.scores} --keep-flops 0.6 -o - | {line} prune bert --mask - -o small/ && "
        f"{line} eval small/ --task sst2 --data train.jsonl --latency-runs 0 --json"
    )
    result = subprocess.run(
        ["bash", "-c", script], cwd=work, env=environment(), capture_output=True, text=True, check=True
    )
    assert not result.stderr.count("it/s"), "bars of libraries"
    folder, _, evaluation = result.stdout.partition("\n")
    assert folder == "small/"
    assert json.loads(evaluation)["metric"]["name"] == "accuracy"
    small, ours = (json.loads((p / "optin.json").read_text()) for p in (work / "small", made.pruned))
    assert small["inputs"].pop("mask")["name"] == "stdin"
    assert ours["inputs"].pop("mask")["name"] == "bert.mask.json"
    assert small == ours


def test_a_reader_that_leaves_early(work, made):
    line = " ".join(command("inspect", made.mask, "--json"))
    result = subprocess.run(
        ["bash", "-c", f"{line} | true"], cwd=work, env=environment(), capture_output=True, text=True, check=False
    )
    assert "Traceback" not in result.stderr and "Exception" not in result.stderr, result.stderr


@pytest.mark.parametrize(
    ("args", "kind"),
    [
        (["profile", "bert", "--json"], Profile),
        (["profile", "bert", "-o", "-"], Profile),
        (["score", "bert", "--calib", "texts.jsonl", *QUICK, "--json"], ScoresHeader),
        (["search", "{scores}", "--keep-flops", "0.6", "--json"], Mask),
        (["search", "{scores}", "--keep-flops", "0.6", "-o", "-"], Mask),
        (["eval", "bert", *SIZES, "--json"], Evaluation),
        (["eval", "bert", *SIZES, "-o", "-"], Evaluation),
        (["eval", "bert", *SIZES, "-o", "e.json", "--json"], Evaluation),
        (["inspect", "{scores}", "--json"], ScoresHeader),
        (["inspect", "{mask}", "--json"], Mask),
        (["inspect", "{evaluation}", "--json"], Evaluation),
        (["inspect", "{profile}", "--json"], Profile),
        (["inspect", "{pruned}", "--json"], Manifest),
        (["inspect", "{pruned}/optin.json", "--json"], Manifest),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value.kind,
)
def test_json_on_stdout_is_the_artifact(work, made, args, kind):
    result = done(*[arg.format(**vars(made)) for arg in args])
    artifact = parse(kind, result.out, "stdout")
    assert artifact.dump() == result.out


def test_scores_on_stdout(work, made):
    result = subprocess.run(
        command("score", "bert", "--calib", "texts.jsonl", *QUICK, "-o", "-"),
        cwd=work,
        env=environment(),
        capture_output=True,
        check=True,
    )
    assert result.stdout == made.scores.read_bytes()
    assert b"it/s" not in result.stderr, "bars of libraries"
    assert not list(work.glob("*.partial"))
    piped = done("search", "-", "--keep-flops", "0.6", stdin=result.stdout)
    assert piped.out == "optin.mask.json\n"
    assert json.loads(Path("optin.mask.json").read_text())["groups"] == json.loads(made.mask.read_text())["groups"]


@pytest.mark.parametrize("name", ["scores", "mask", "evaluation", "profile", "pruned"])
def test_inspect_tells_people(made, name):
    text = done("inspect", getattr(made, name)).out
    assert "sha256" in text and "written by optin" in text
    assert "MACs" in text if name in ("evaluation", "profile") else "encoder.0.head" in text


def test_profile_prints_a_table(work):
    text = done("profile", "bert", "--seq-len", "32").out
    assert all(word in text for word in ("bert", "32 tokens", "encoder.2.neuron", "cannot be pruned", "%"))
    assert not list(work.glob("*.json"))


@pytest.mark.parametrize("name", ["bert[v2]", "b[bold]", "b e r t"])
def test_any_name_can_be_shown(work, made, name):
    (work / "bert").rename(name)
    assert name in done("profile", name).out
    assert done("eval", name, *SIZES).out == f"{name}.eval.json\n"
    assert name in done("inspect", f"{name}.eval.json").out


def test_several_budgets(work, made):
    result = done("search", made.scores, "--keep-flops", "0.7,0.6", "--keep-params", "0.9")
    names = ["bert.mask-0.7-0.9.json", "bert.mask-0.6-0.9.json"]
    assert result.out.splitlines() == names
    assert sorted(p.name for p in work.glob("*mask*")) == sorted(names)
    result = done("search", made.scores, "--keep-flops", "0.7,0.6", "-o", "masks")
    assert result.out.splitlines() == ["masks/mask-0.7.json", "masks/mask-0.6.json"]
    for path, share in zip(result.out.splitlines(), (0.7, 0.6), strict=True):
        mask = parse(Mask, Path(path).read_text(), path)
        assert mask.budget.asked == {"macs": share}
        assert mask.budget.reached["macs"] <= share
    assert call("search", made.scores, "--keep-flops", "0.7,0.6", "-o", "masks").code == 1
    done("search", made.scores, "--keep-flops", "0.7,0.6", "-o", "masks", "--force")


def test_search_options(work, made):
    args = ["--min-heads", "1", "--min-neurons", "3", "--protect", "encoder.1.*", "--round-to", "8", "--json"]
    mask = parse(Mask, done("search", made.scores, "--keep-flops", "0.5", *args).out, "stdout")
    kept = {name: len(group.kept) for name, group in mask.groups.items()}
    assert kept["encoder.1.head"] == 4 and kept["encoder.1.neuron"] == 40
    assert min(n for name, n in kept.items() if name.endswith("head")) >= 1
    assert all(n >= 3 and n % 8 == 0 for name, n in kept.items() if name.endswith("neuron"))
    picture = done("search", made.scores, "--keep-flops", "0.5", "-o", "m.json").err
    assert "encoder.2" in picture and "●" in picture and "/40" in picture


def test_force_replaces(work, made):
    for output in ("bert.scores.safetensors", "bert.mask.json", "bert.eval.json"):
        Path(output).write_text("old")
    Path("bert-pruned").mkdir()
    Path("bert-pruned/old").touch()
    done("score", "bert", "--calib", "texts.jsonl", *QUICK, "--force")
    done("search", "bert.scores.safetensors", "--keep-flops", "0.6", "--force")
    done("prune", "bert", "--mask", "bert.mask.json", "--force")
    done("eval", "bert", *SIZES, "--force")
    assert Path("bert.scores.safetensors").read_bytes() == made.scores.read_bytes()
    assert Path("bert.mask.json").read_bytes() == made.mask.read_bytes()
    assert tree(work / "bert-pruned") == tree(made.pruned), "equal runs give equal bytes"
    parse(Evaluation, Path("bert.eval.json").read_text(), "bert.eval.json")


def test_colour_is_for_terminals(work, made):
    for env in ({}, {"NO_COLOR": "1"}):
        results = [run_cli("inspect", made.mask, cwd=work, env=env), run_cli("inspect", "none", cwd=work, env=env)]
        assert [r.returncode for r in results] == [0, 1]
        assert not any("\x1b" in r.stdout + r.stderr for r in results)
        assert results[1].stderr.startswith("error: none does not exist")


# An own architecture description


OWN = ("--architecture", "mine.json")


@pytest.fixture
def own(work):
    """The working directory with a description of BERT beside the checkpoint, as a user has one of an own family."""
    shutil.copyfile(FOLDER / "bert.json", work / "mine.json")
    return work


def pruned_with(*description):
    done("score", "bert", "--calib", "texts.jsonl", *QUICK, *description, "-o", "s.safetensors")
    done("search", "s.safetensors", "--keep-flops", "0.6", "-o", "m.json")
    done("prune", "bert", "--mask", "m.json", *description, "-o", "small")


def test_every_artifact_records_an_own_description(own):
    pruned_with(*OWN)
    done("profile", "bert", *OWN, "-o", "p.json")
    done("profile", "bert", "--latency", "--runs", "1", "--batch", "1", *OWN, "-o", "l.json")
    done("search", "s.safetensors", "--keep-latency", "1", "--latency-table", "l.json", "-o", "timed.json")
    data = ("--task", "sst2", "--data", "train.jsonl", *SIZES)
    done("eval", "small", *data, "--against", "bert", *OWN, "-o", "e.json")
    done("export", "small", "--to", "torch-export", *OWN, "-o", "traced")
    done("eval", "traced/model.pt2", *SIZES, *OWN, "-o", "t.json")
    sweep = ("--calib", "texts.jsonl", "--samples", "8", "--recipe", "magnitude", "--max-drop", "1")
    done("sweep", "bert", *data, *sweep, "--evaluations", "1", *OWN, "-o", "swept")
    folders = [Path(name) for name in (".", "small", "traced", "swept", "swept/model")]
    found = {str(folder / read.name): read.head.inputs for folder in folders for read in artifacts_in(folder)}
    assert set(found) == {
        *("s.safetensors", "m.json", "p.json", "l.json", "timed.json", "e.json", "t.json"),
        *("small/optin.json", "traced/model.pt2.optin.json"),
        *("swept/sweep.json", "swept/mask.json", "swept/model/optin.json"),
    }
    mine = Source(name="mine.json", sha256=sha256_of(Path("mine.json")))
    assert {name: inputs.get("architecture") for name, inputs in found.items()} == dict.fromkeys(found, mine)
    assert "Units as described by `mine.json`" in Path("small/README.md").read_text()
    facts = json.loads(done("report", "small", "--mask", "m.json", "--profile", "p.json", "--json").out)
    assert ["architecture of the manifest", "mine.json"] in [[o["role"], o["name"]] for o in facts["origins"]]
    lines = {line.split()[1]: line.endswith(" --architecture mine.json") for line in facts["commands"]}
    assert lines == {"profile": True, "score": True, "search": False, "prune": True, "eval": True}


def test_a_shipped_description_is_recorded_nowhere(made):
    found = [*artifacts_in(made.root), *artifacts_in(made.pruned)]
    assert len(found) == 5
    assert not [read.name for read in found if "architecture" in read.head.inputs]


def test_a_mask_of_another_description_is_refused(own):
    pruned_with(*OWN)
    (own / "other.json").write_text((own / "mine.json").read_text() + "\n")
    shutil.copytree(own / "small", own / "before")
    cases = [
        ((), "with the shipped architecture description"),
        (("--architecture", "other.json"), "other.json (sha256"),
    ]
    for refit in ((), ("--calib", "texts.jsonl", "--samples", "8")):
        for description, words in cases:
            result = call("prune", "bert", "--mask", "m.json", *refit, *description, "-o", "small", "--force")
            assert result.code == 1 and words in result.err
            assert "m.json was made with the architecture description mine.json (sha256" in result.err
    done("search", scored(), "--keep-flops", "0.6", "-o", "shipped.json")
    result = call("prune", "bert", "--mask", "shipped.json", *OWN, "-o", "small", "--force")
    assert result.code == 1 and "shipped.json was made with the shipped architecture description" in result.err
    assert tree(own / "small") == tree(own / "before")
    Path("mine.json").rename("renamed.json")
    done("prune", "bert", "--mask", "m.json", "--architecture", "renamed.json", "-o", "again")
    assert folder_source(Path("again")).sha256 == folder_source(Path("small")).sha256


def scored(*description):
    done("score", "bert", "--calib", "texts.jsonl", *QUICK, *description, "-o", "plain.safetensors", "--force")
    return "plain.safetensors"


def test_artifacts_of_two_descriptions_do_not_mix(own):
    """A latency table is of the scores' description, and a report's scores and profile of the mask's."""
    done("profile", "bert", "--latency", "--runs", "1", "--batch", "1", *OWN, "-o", "l.json")
    budget = ("--keep-latency", "0.9", "--latency-table", "l.json")
    result = call("search", scored(), *budget, "-o", "m.json")
    assert result.code == 1 and "l.json was made with the architecture description mine.json" in result.err
    assert "plain.safetensors was made with the shipped" in result.err
    pruned_with(*OWN)
    done("profile", "bert", "-o", "p.json")
    result = call("report", "small", "--profile", "p.json", "-o", "r.html")
    assert result.code == 1 and "p.json was made with the shipped architecture description" in result.err
    done("profile", "bert", *OWN, "-o", "own.json")
    done("report", "small", "--mask", "m.json", "--profile", "own.json", "-o", "r.html")


# Help


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_has_help(name):
    assert COMMANDS[name].help.endswith(".")
    for parameter in options(name):
        assert parameter.help, f"{name} {parameter.name}"
    shown = re.sub(r"[│\s]+", " ", done(name, "--help").out)
    for parameter in options(name):
        assert parameter.param_type_name == "argument" or parameter.opts[0][:20] in shown
        assert not [word for word in parameter.help.split() if word not in shown]


@pytest.mark.parametrize("name", COMMANDS)
def test_no_count_is_called_a_share(name):
    counts = [parameter for parameter in options(name) if type(parameter.default) is int]
    assert not [parameter.name for parameter in counts if re.search(r"\bshares? of\b", parameter.help, re.IGNORECASE)]


def test_help_loads_nothing_heavy(here):
    code = (
        "import sys; from optin_cli.cli.main import main\n"
        "sys.argv[0] = 'optin'\n"
        "try: main()\n"
        "except SystemExit as stop: status = stop.code\n"
        "heavy = {'torch', 'transformers', 'datasets', 'scipy', 'numpy'} & set(sys.modules)\n"
        "print(status, sorted(heavy), file=sys.stderr)"
    )
    for args in (["--help"], ["score", "--help"], ["--version"]):
        result = python(code, *args, cwd=here)
        assert result.stderr.strip() == "0 []", result.stderr
    assert result.stdout.strip() == optin_cli.__version__


def test_search_and_inspect_need_no_torch(here, made):
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from optin_cli.cli.main import main\nmain()"
    )
    for args in (["search", made.scores, "--keep-flops", "0.6"], ["inspect", made.scores], ["inspect", made.pruned]):
        result = python(code, *args, cwd=here)
        assert result.returncode == 0, result.stderr


def test_no_arguments_print_help():
    result = call()
    assert result.code == 2
    assert all(name in result.out + result.err for name in COMMANDS)


def test_readme_documents_every_command():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not [name for name in COMMANDS if f"optin {name}" not in text]


# Scoring: equal bytes, order, interruption


def scores(*args, output="s.safetensors"):
    done("score", "bert", "--calib", "texts.jsonl", *QUICK, *args, "-o", output, "--force")
    return Path(output).read_bytes()


def test_equal_runs_give_equal_scores(work, made):
    assert scores() == scores() == made.scores.read_bytes()
    assert scores("--seed", "1") != scores()


@pytest.mark.parametrize("samples", ["8", "100"])
def test_order_of_calibration_lines_does_not_matter(work, samples):
    whole = scores("--samples", samples)
    lines = work.joinpath("texts.jsonl").read_text().splitlines(keepends=True)
    work.joinpath("texts.jsonl").write_text("".join(lines[::-1]))
    assert scores("--samples", samples) == whole


@contextlib.contextmanager
def watched(stop=None):
    """Record what scoring reports; interrupt it once `stop` jobs are done."""
    told = []

    @contextlib.contextmanager
    def progress(title):
        def tell(done, total, what):
            if stop is not None and len(told) == stop:
                raise KeyboardInterrupt
            told.append((done, total, what))

        yield tell

    with patch("optin_cli.cli.common.progress", progress):
        yield told


ONCE = ("--estimator", "sketch")


@pytest.mark.parametrize(
    "extra", [ONCE, ("--estimator", "hybrid", "--exact-samples", "4"), ("--criterion", "fisher")]
)
def test_resumed_scores_are_those_of_one_run(work, extra):
    args = ["score", "bert", "--calib", "train.jsonl", *QUICK, "--batch-size", "2", *extra, "-o"]
    with watched() as told:
        done(*args, "whole.safetensors")
    jobs = len(told) - 1
    assert jobs >= 4
    for stop in {1, 3, jobs}:
        output = Path(f"after-{stop}.safetensors")
        partial = Path(f"{output}.partial")
        with watched(stop):
            result = call(*args, output)
        assert result.code == 130
        assert "--resume" in result.err and str(partial) in result.err and "Interrupted" in result.err
        assert partial.is_file() and not output.exists()
        with watched() as again:
            done(*args, output, "--resume")
        assert len(again) - 1 == jobs - stop, "finished batches were computed again"
        assert output.read_bytes() == Path("whole.safetensors").read_bytes()
        assert not partial.exists()


def test_resumed_rounds_are_those_of_one_run(work):
    rounds = ("--estimator", "sketch", "--rescore", "0.8,0.6")
    args = ["score", "bert", "--calib", "train.jsonl", *QUICK, "--batch-size", "2", *rounds, "-o"]
    with watched() as told:
        done(*args, "whole.safetensors")
    assert any(what.endswith("neuron") for _, _, what in told), "no refit between rounds"
    for stop in (2, len(told) // 2, len(told) - 2):
        output = f"after-{stop}.safetensors"
        with watched(stop):
            assert call(*args, output).code == 130
        done(*args, output, "--resume")
        assert Path(output).read_bytes() == Path("whole.safetensors").read_bytes()
        assert not list(work.glob("*.partial*"))


def test_resume_with_nothing_to_resume(work):
    assert scores("--resume") == scores()


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


def test_termination_while_certifying_leaves_nothing(work, made):
    args = command("prune", "bert", "--mask", made.mask)
    before = tree(work)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(args, cwd=work, env=environment(), **streams) as process:
        wait_for(lambda: list(work.glob(".bert-pruned.*/modeling_optin.py")), process)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert "Interrupted" in err and "Traceback" not in err
    assert tree(work) == before


# Evaluation


def evaluation(*args):
    return parse(Evaluation, done("eval", *args, *SIZES, "--json").out, "stdout")


def test_evaluation_with_labels(made):
    result = evaluation(made.pruned, "--task", "sst2", "--data", made.train, "--against", made.bert)
    assert result.task == "sst2" and result.samples == 24 and result.metric.name == "accuracy"
    assert result.latency is None and result.against.latency_ratio is None
    assert result.against.drop == pytest.approx(result.against.metric.value - result.metric.value)
    assert result.against.macs_ratio == pytest.approx(0.5992, abs=1e-3)
    manifest = parse(Manifest, (made.pruned / "optin.json").read_text(), "manifest")
    assert result.totals == manifest.after


def test_evaluation_without_labels_measures_agreement(made):
    for args in (["--data", made.texts], ["--data", made.texts, "--task", "sst2"]):
        result = evaluation(made.bert, *args, "--against", made.bert)
        assert result.metric is None and result.metrics == {}
        assert result.against.agreement == 1.0 and result.against.kl == pytest.approx(0, abs=1e-6)
        assert result.against.drop is None


def test_evaluation_without_data_measures_size_and_speed(made):
    result = parse(Evaluation, done("eval", made.bert, "--latency-runs", "2", "--json").out, "stdout")
    assert result.metric is None and result.samples == 0 and result.totals.macs > 0
    assert result.latency.runs == 2 and result.latency.median_ms > 0


@pytest.mark.parametrize(("most", "code"), [(-1.0, 3), (0.0, 0), (1.0, 0)])
def test_the_gate_of_a_drop(here, made, most, code):
    compare = ["--task", "sst2", "--data", made.train, "--against", made.bert, *SIZES]
    result = call("eval", made.bert, *compare, "--max-drop", most)
    assert result.code == code
    assert ("gate not met" in result.err) == (code == 3)
    assert result.out == "bert.eval.json\n", "the evaluation is written either way"
    assert parse(Evaluation, Path("bert.eval.json").read_text(), "eval").against.drop == 0


# State dicts and what a pruned folder gives


@pytest.mark.parametrize(
    ("name", "wrap"),
    [
        ("bert.safetensors", lambda state: state),
        ("bert.pt", lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}),
        ("bert.ckpt", lambda state: {"model": {f"model.{k}": v for k, v in state.items()}}),
        ("bert.bin", lambda state: state),
    ],
)
def test_state_dict_files(here, made, name, wrap):
    state = wrap(load_file(made.bert / "model.safetensors"))
    save_file(state, name) if name.endswith(".safetensors") else torch.save(state, name)
    args = ["--calib", made.texts, *QUICK, "--arch", made.bert if name != "bert.pt" else f"hf:{made.bert}"]
    assert done("score", name, *args).out == "bert.scores.safetensors\n"
    ours, folder = (load_file(path) for path in ("bert.scores.safetensors", made.scores))
    assert all(torch.equal(ours[k], folder[k]) for k in folder)


def probe():
    generator = torch.Generator().manual_seed(3)
    return {"input_ids": torch.randint(5, 90, (2, 12), generator=generator), "attention_mask": torch.ones(2, 12).long()}


@torch.no_grad()
def test_load_gives_the_masked_model(made):
    mask = parse(Mask, made.mask.read_text(), "mask")
    original = load_checkpoint(made.bert)
    with masked(original.model, original.structure, {name: g.kept for name, g in mask.groups.items()}):
        expected = original.model(**probe()).logits
    loaded = optin_cli.load(made.pruned).model
    assert isinstance(loaded, torch.nn.Module) and not loaded.training
    torch.testing.assert_close(loaded(**probe()).logits, expected, rtol=1e-5, atol=1e-5)
    assert sum(p.numel() for p in loaded.parameters()) < sum(p.numel() for p in original.model.parameters())
    assert not torch.allclose(original.model(**probe()).logits, expected, rtol=1e-3)


def test_the_pruned_folder_needs_no_optin(here, made):
    code = """
import sys
sys.modules["optin_cli"] = None
import torch, transformers
from safetensors.torch import load_file, save_file
folder, probe, out = sys.argv[1:]
results = {}
for name, key in (("AutoModelForSequenceClassification", "logits"), ("AutoModel", "last_hidden_state")):
    model = getattr(transformers, name).from_pretrained(folder, trust_remote_code=True).eval()
    with torch.no_grad():
        results[name] = model(**load_file(probe))[key].contiguous()
transformers.AutoTokenizer.from_pretrained(folder)
save_file(results, out)
"""
    save_file(probe(), "probe.safetensors")
    result = python(
        code, made.pruned, "probe.safetensors", "out.safetensors", cwd=here, HF_MODULES_CACHE=str(here / "m")
    )
    assert result.returncode == 0, result.stderr
    found = load_file("out.safetensors")
    loaded = optin_cli.load(made.pruned).model
    with torch.no_grad():
        torch.testing.assert_close(found["AutoModelForSequenceClassification"], loaded(**probe()).logits)
        torch.testing.assert_close(found["AutoModel"], loaded.bert(**probe()).last_hidden_state)


def test_stock_transformers_refuses_the_pruned_folder(made):
    """Without remote code there is an error, never a model with random weights."""
    transformers.logging.set_verbosity_error()
    with pytest.raises((RuntimeError, ValueError)):
        transformers.BertForSequenceClassification.from_pretrained(made.pruned)


def test_the_card_says_how_to_load(made):
    card = (made.pruned / "README.md").read_text()
    assert card.index("How to load") < card.index("What was done")
    assert "trust_remote_code=True" in card and "Asked: 0.6 of the macs" in card


# The demo


def test_demo(here):
    result = done("demo", "show")
    artifacts = ("profile.json", "scores.safetensors", "mask.json")
    names = [*(f"bert-sst2.{a}" for a in artifacts), "bert-sst2-pruned", "bert-sst2-pruned.eval.json"]
    assert {*names, "bert-sst2", "train.jsonl", "validation.jsonl"} == {p.name for p in (here / "show").iterdir()}
    assert all(f"$ optin {name}" in result.err for name in ("profile", "score", "search", "prune", "eval"))
    assert all(word in result.out for word in ("before", "after", "accuracy", "MACs", "latency"))
    report = parse(Evaluation, (here / "show" / names[-1]).read_text(), "eval")
    assert report.against.macs_ratio <= 0.5 and report.against.drop < 0.05
    assert call("demo", "show").code == 1


def test_interrupting_the_demo_stops_it(here):
    with patch("optin_cli.checkpoints.checkpoint.load", side_effect=KeyboardInterrupt) as load:
        result = call("demo", "show")
    assert result.code == 130 and load.call_count == 1
    assert "Interrupted" in result.err
    assert Path.cwd() == here
