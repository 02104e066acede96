"""Question answering: spans decoded into answers, evaluation, and the command."""

import json
import math

import pytest
import torch
from helpers.models import save_checkpoint, tiny_tokenizer
from helpers.questions import LETTERS, ROWS, SQUAD, SQUAD2, read
from helpers.running import call, done, write_rows

from optin_cli.checkpoints.checkpoint import load as load_checkpoint
from optin_cli.data.text.tokenize import cut_batches
from optin_cli.data.text.windows import cut_windows
from optin_cli.errors import DataError
from optin_cli.evaluation.evaluate import Exam, evaluate_samples
from optin_cli.evaluation.predictors.answers import decode_answers
from optin_cli.options.evaluation import AnswerOptions, EvalOptions

OPTIONS = EvalOptions(latency_runs=0, batch_size=2, seq_len=8, max_length=12, answers=AnswerOptions(doc_stride=2))

# Decoding


def decoded(contexts, marks, *, side="right", null=0.0, unanswerable=False, threshold=0.0, length=12):
    """Answers to questions whose model gives 5 to the letter of `marks` wherever it stands, 0 to others."""
    tokenizer = tiny_tokenizer(padding_side=side)
    questions = ["good"] * len(contexts)
    windows = cut_windows(questions, contexts, tokenizer, max_length=length, stride=2)
    batches = cut_batches(windows.fields, tokenizer, batch_size=3)
    widest = max(batch.inputs["input_ids"].shape[1] for batch in batches)
    logits = torch.zeros(len(windows.owners), widest)
    done_rows = 0
    for batch in batches:
        ids = batch.inputs["input_ids"]
        for place, row in enumerate(batch.rows):
            token = tokenizer.convert_tokens_to_ids(marks[windows.owners[row]])
            logits[done_rows + place, : ids.shape[1]] += 2.5 * (ids[place] == token)
            logits[done_rows + place, : ids.shape[1]] += null / 2 * (ids[place] == tokenizer.cls_token_id)
        done_rows += batch.size
    options = AnswerOptions(no_answer_threshold=threshold)
    return decode_answers(contexts, windows, batches, logits, logits, options=options, unanswerable=unanswerable)


@pytest.mark.parametrize("side", ["right", "left"])
def test_answer_in_any_window_is_found(side):
    contexts, marks = [LETTERS, LETTERS, "d e f", LETTERS], ["b", "t", "e", "k"]
    assert len(cut_windows(["good"], [LETTERS], tiny_tokenizer(), max_length=12, stride=2).owners) > 2
    assert decoded(contexts, marks, side=side) == marks


def test_question_is_never_the_answer():
    assert decoded(["a b c"], ["good"]) != ["good"]


@pytest.mark.parametrize(
    ("null", "threshold", "unanswerable", "expected"),
    [
        (4.0, 0.0, True, "t"),
        (6.0, 0.0, True, ""),
        (6.0, 2.0, True, "t"),
        (4.0, -2.0, True, ""),
        (6.0, 0.0, False, "t"),
        (5.0, 0.0, True, "t"),
    ],
)
def test_no_answer_must_beat_the_best_span_by_the_threshold(null, threshold, unanswerable, expected):
    found = decoded([LETTERS], ["t"], null=null, threshold=threshold, unanswerable=unanswerable)
    assert found == [expected]


def test_non_finite_logits_are_refused():
    tokenizer = tiny_tokenizer()
    windows = cut_windows(["good"], ["a b"], tokenizer, max_length=12, stride=2)
    batches = cut_batches(windows.fields, tokenizer, batch_size=1)
    logits = torch.full((1, 6), math.nan)
    with pytest.raises(DataError, match="NaN or infinity for 1 of 1 windows"):
        decode_answers(["a b"], windows, batches, logits, logits, options=AnswerOptions(), unanswerable=False)


# The whole


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("qa")
    return [save_checkpoint(root / str(seed), head="answers", seed=seed) for seed in range(2)]


def test_evaluation_predicts_spans_and_compares(tmp_path, folders):
    mine, theirs = map(load_checkpoint, folders)
    samples = read(write_rows(tmp_path / "d.jsonl", ROWS), SQUAD2)
    result = evaluate_samples(mine, Exam(samples, SQUAD2, OPTIONS), theirs)
    assert list(result.metrics) == ["squad_f1", "squad_em"]
    assert result.metric.name == "squad_f1"
    assert result.samples == 3
    assert (result.options["max_length"], result.options["doc_stride"]) == (12, 2)
    assert 0 <= result.against.agreement < 1
    assert result.against.kl > 0
    same = evaluate_samples(mine, Exam(samples, SQUAD2, OPTIONS), mine).against
    assert (same.drop, same.agreement, same.kl) == (0, 1, pytest.approx(0, abs=1e-9))


def test_agreement_needs_no_answers(tmp_path, folders):
    mine, theirs = map(load_checkpoint, folders)
    rows = [{"question": r["question"], "context": r["context"]} for r in ROWS]
    samples = read(write_rows(tmp_path / "d.jsonl", rows))
    result = evaluate_samples(mine, Exam(samples, SQUAD, OPTIONS), theirs)
    assert (result.metric, result.metrics) == (None, {})
    assert 0 <= result.against.agreement < 1


def test_the_eval_command_takes_options_of_answers(folders, here):
    data = write_rows(here / "squad.jsonl", ROWS)
    options = ("--max-length", 14, "--doc-stride", 3, "--latency-runs", 0, "--json")
    result = json.loads(done("eval", folders[0], "--task", "squad_v2", "--data", data, *options).out)
    assert result["options"]["doc_stride"] == 3
    strict = ("--no-answer-threshold=-1e9", *options)
    silent = json.loads(done("eval", folders[0], "--task", "squad_v2", "--data", data, *strict).out)
    assert silent["metrics"] == {"squad_f1": pytest.approx(1 / 3), "squad_em": pytest.approx(1 / 3)}


def test_unfit_checkpoint_and_columns_are_refused(folders, tmp_path, here):
    answerer = load_checkpoint(folders[0])
    classifier = load_checkpoint(save_checkpoint(tmp_path / "classifier"))
    samples = read(write_rows(tmp_path / "d.jsonl", ROWS), SQUAD2)
    with pytest.raises(DataError, match=r"squad_v2 is a question-answering task, but classifier is .* classification"):
        evaluate_samples(classifier, Exam(samples, SQUAD2, OPTIONS))
    with pytest.raises(DataError, match="different things: categorical, categorical, against categorical"):
        evaluate_samples(answerer, Exam(samples, None, OPTIONS), classifier)
    one = read(tmp_path / "d.jsonl", SQUAD2, columns=("context",))
    with pytest.raises(DataError, match="two texts a sample, question and context"):
        evaluate_samples(answerer, Exam(one, SQUAD2, OPTIONS))
    data = write_rows(here / "d.jsonl", [{"question": "a", "context": "b"}])
    run = call("eval", folders[0], "--task", "squad", "--data", data)
    assert run.code == 1
    assert "no labels" in run.err
