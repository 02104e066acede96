"""The end of a stage: what it took, what to do next, and GitHub's summary of the step."""

import json
import shlex
from pathlib import Path

import pytest
from helpers.running import QUICK, call, done

from optin_cli.artifacts.base import Took, parse
from optin_cli.artifacts.scores import ScoresHeader, read_scores

SIZES = ("--latency-runs", "0")


def lines_of(run, lead):
    """The lines of stderr that begin so, without that."""
    return [line.removeprefix(lead) for line in run.err.splitlines() if line.startswith(lead)]


def test_the_next_commands_lead_from_scores_to_a_report(work):
    run = done("score", "bert", "--calib", "texts.jsonl", *QUICK)
    seen = []
    for _ in range(4):
        command = shlex.split(lines_of(run, "next: optin ")[0], comments=True)
        seen.append(command[0])
        command = ["train.jsonl" if word == "PATH" else word for word in command]
        run = done(*command, *(SIZES if command[0] == "eval" else ()))
    assert seen == ["search", "prune", "eval", "report"]
    assert Path("bert-pruned.report.html").is_file()


def test_a_stage_says_its_data_device_time_and_memory(work):
    run = done("score", "bert", "--calib", "texts.jsonl", *QUICK)
    assert lines_of(run, "data: ") == ["8 of 24 samples of texts.jsonl, column sentence"]
    (took,) = lines_of(run, "took: ")
    assert " s on cpu (" in took and " thread" in took and "; peak memory " in took
    run = done("eval", "bert", "--task", "sst2", "--data", "train.jsonl", *SIZES)
    assert lines_of(run, "data: ") == ["24 samples of train.jsonl, columns sentence, label"]


def test_json_says_what_a_run_took_and_files_do_not(work):
    printed = parse(ScoresHeader, done("score", "bert", "--calib", "texts.jsonl", *QUICK, "--json").out, "stdout")
    assert isinstance(printed.took, Took)
    assert printed.took.seconds > 0 and printed.took.peak_bytes > 1e6 and printed.took.device.startswith("cpu")
    assert printed.took.data == ("8 of 24 samples of texts.jsonl, column sentence",)
    written = read_scores("bert.scores.safetensors").header
    assert written.took is None and written == printed.model_copy(update={"took": None})
    assert "took" not in json.loads(written.dump())


def test_what_runs_took_is_no_difference(work):
    result = json.loads(done("eval", "bert", *SIZES, "--json").out)
    Path("a.json").write_text(json.dumps(result))
    result["took"]["seconds"] += 1
    Path("b.json").write_text(json.dumps(result))
    assert done("diff", "a.json", "b.json", "--exit-code").out.count("took") == 0


def test_github_shows_a_summary_in_markdown(work, made, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "summary.md")
    Path("summary.md").write_text("before\n")
    compare = ("--task", "sst2", "--data", "train.jsonl", "--against", "bert", *SIZES)
    assert call("eval", made.pruned, *compare, "--max-drop", "0", "-o", "e.json").code in (0, 3)
    call("eval", "bert", *compare, "--max-drop", "0", "-o", "f.json")
    done("search", made.scores, "--keep-flops", "0.6")
    text = Path("summary.md").read_text()
    assert text.startswith("before\n") and text.count("### optin eval") == 2 and text.count("### optin search") == 1
    assert "|  | bert-pruned | bert | ratio |\n| --- | ---: | ---: | ---: |\n| accuracy |" in text
    assert "took: " in text and "```\nkeeps " in text


def test_a_gate_that_is_not_met_is_in_the_summary(work, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "summary.md")
    compare = ("--task", "sst2", "--data", "train.jsonl", "--against", "bert", *SIZES)
    run = call("eval", "bert", *compare, "--max-drop", "-1")
    assert run.code == 3 and "**gate not met:** " in Path("summary.md").read_text()


def test_a_summary_that_cannot_be_written_is_a_warning(made, here, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "nowhere/summary.md")
    run = done("search", made.scores, "--keep-flops", "0.6")
    assert "warning: GITHUB_STEP_SUMMARY names nowhere/summary.md" in run.err


@pytest.mark.parametrize(
    ("took", "words"),
    [
        (Took(device="cpu (X)", threads=1, seconds=2.345), ["took: 2.3 s on cpu (X), 1 thread"]),
        (
            Took(data=("8 samples of a", "9 of b"), device="cpu (X)", threads=4, seconds=100, peak_bytes=1_234_567_890),
            ["data: 8 samples of a; 9 of b", "took: 100.0 s on cpu (X), 4 threads; peak memory 1.23 GB"],
        ),
        (
            Took(device="cuda (H)", threads=4, seconds=1, peak_bytes=10**9, peak_device_bytes=5 * 10**9),
            ["took: 1.0 s on cuda (H); peak memory 1.00 GB, 5.00 GB on the GPU"],
        ),
    ],
)
def test_what_a_run_took_in_words(took, words):
    assert took.lines == words


def test_the_next_command_asks_for_data_that_cannot_be_found_again(work):
    Path("far").mkdir()
    data = Path("texts.jsonl").rename("far/texts.jsonl").resolve()
    scored = done("score", "bert", "--calib", data, *QUICK)
    assert lines_of(done("search", "bert.scores.safetensors", "--keep-flops", "0.7"), "next: ") == [
        "optin prune bert --mask bert.mask.json --calib PATH"
    ], scored.err
    data.rename("texts.jsonl")
    assert lines_of(done("search", "bert.scores.safetensors", "--keep-flops", "0.7", "--force"), "next: ") == [
        "optin prune bert --mask bert.mask.json"
    ]
