"""Question answering: windows cut, spans decoded, and the whole command."""

import json
import math
from itertools import pairwise

import pytest
import torch
from helpers.models import save_checkpoint, tiny_tokenizer
from helpers.running import call, done, write_rows

from optin_cli.checkpoints.checkpoint import load as load_checkpoint
from optin_cli.data.spec import DataSpec
from optin_cli.data.text.samples import load_samples
from optin_cli.data.text.tokenize import cut_batches
from optin_cli.data.text.windows import cut_windows
from optin_cli.errors import DataError, UsageError
from optin_cli.evaluation.evaluate import Exam, evaluate_samples
from optin_cli.evaluation.predictors.answers import decode_answers
from optin_cli.evaluation.predictors.spans import best_spans
from optin_cli.options.evaluation import AnswerOptions, EvalOptions
from optin_cli.tasks.registry import load_task

SQUAD, SQUAD2 = load_task("squad"), load_task("squad_v2")
QUICK = EvalOptions(latency_runs=0, batch_size=2, seq_len=8, max_length=12, answers=AnswerOptions(doc_stride=2))
LETTERS = "a b c d e f g h i j k l m n o p q r s t"
ROWS = [
    {"question": "good film", "context": LETTERS, "answers": {"text": ["b c", "b"], "answer_start": [2, 2]}},
    {"question": "bad film", "context": "d e f", "answers": {"text": ["e"], "answer_start": [2]}},
    {"question": "film", "context": "g h", "answers": {"text": [], "answer_start": []}},
]


def read(path, task=SQUAD, **options):
    return load_samples(DataSpec(str(path), known=task, role=options.pop("role", "evaluation"), **options))


# Windows


def test_windows_cover_the_context_and_share_the_stride():
    context = LETTERS
    windows = cut_windows(["good", "bad"], [context, "a b"], tiny_tokenizer(), max_length=10, stride=2)
    assert windows.owners == [0, 0, 0, 0, 0, 1]
    assert windows.nulls == [0] * 6
    seen = []
    for ids, spans in zip(windows.fields["input_ids"], windows.spans, strict=True):
        assert len(ids) == len(spans) <= 10
        seen.append([(int(a), int(b)) for a, b in spans if a >= 0])
        assert ids[:3] == [2, ids[1], 3]
        assert (spans[:3] == -1).all()
        assert (spans[-1] == -1).all()
    for one, following in pairwise(seen[:5]):
        assert one[-2:] == following[:2]
    assert "".join(context[a:b] for a, b in sorted({s for window in seen[:5] for s in window})) == context.replace(
        " ", ""
    )


def test_long_questions_are_cut():
    windows = cut_windows([LETTERS], ["good film"], tiny_tokenizer(), max_length=13, stride=2)
    assert windows.fields["input_ids"][0].index(3) == 1 + 5, "half of the ten tokens that are not special"
    assert windows.owners == [0]


@pytest.mark.parametrize(("length", "stride"), [(4, 2), (12, -1)])
def test_impossible_windows_are_refused(length, stride):
    with pytest.raises(UsageError, match="at least 5 tokens, and to share 0 or more"):
        cut_windows(["good"], ["a b"], tiny_tokenizer(), max_length=length, stride=stride)


def test_smallest_windows():
    windows = cut_windows(["good bad"], ["a b c"], tiny_tokenizer(), max_length=5, stride=128)
    assert windows.owners == [0, 0, 0]


# Decoding


@pytest.mark.parametrize(
    ("start", "end", "allowed", "longest", "expected"),
    [
        ([0, 5, 0, 0], [0, 0, 5, 0], [1, 1, 1, 1], 30, (10, 1, 2)),
        ([0, 5, 0, 0], [0, 9, 5, 0], [0, 1, 1, 1], 30, (14, 1, 1)),
        ([0, 0, 0, 9], [9, 0, 0, 0], [1, 1, 1, 1], 30, (9, 0, 0)),
        ([9, 1, 0, 0], [9, 0, 1, 0], [0, 1, 1, 1], 30, (2, 1, 2)),
        ([9, 0, 0, 1], [0, 0, 0, 9], [1, 1, 1, 1], 3, (10, 3, 3)),
        ([9, 0, 0, 1], [0, 0, 0, 9], [1, 1, 1, 1], 4, (18, 0, 3)),
        ([1, 2, 3, 4], [1, 2, 3, 4], [0, 0, 0, 0], 30, (-math.inf, 0, 0)),
    ],
)
def test_best_span(start, end, allowed, longest, expected):
    rows = [torch.tensor([start]).float(), torch.tensor([end]).float(), torch.tensor([allowed]).bool()]
    best, first, last = (float(found) for found in best_spans(*rows, longest))
    assert best == expected[0]
    assert math.isinf(best) or (first, last) == expected[1:]


def test_best_span_equals_trying_all():
    generator = torch.Generator().manual_seed(0)
    start, end = (torch.randn(5, 9, generator=generator) for _ in range(2))
    allowed = torch.rand(5, 9, generator=generator) < 0.7
    found = [values.tolist() for values in best_spans(start, end, allowed, 4)]
    for row in range(5):
        spans = [(i, j) for i in range(9) for j in range(i, min(i + 4, 9)) if allowed[row, i] and allowed[row, j]]
        first, last = max(spans, key=lambda s: float(start[row, s[0]] + end[row, s[1]]))
        assert (found[1][row], found[2][row]) == (first, last)


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
    result = evaluate_samples(mine, Exam(samples, SQUAD2, QUICK), theirs)
    assert list(result.metrics) == ["squad_f1", "squad_em"]
    assert result.metric.name == "squad_f1"
    assert result.samples == 3
    assert (result.options["max_length"], result.options["doc_stride"]) == (12, 2)
    assert 0 <= result.against.agreement < 1
    assert result.against.kl > 0
    same = evaluate_samples(mine, Exam(samples, SQUAD2, QUICK), mine).against
    assert (same.drop, same.agreement, same.kl) == (0, 1, pytest.approx(0, abs=1e-9))


def test_agreement_needs_no_answers(tmp_path, folders):
    mine, theirs = map(load_checkpoint, folders)
    rows = [{"question": r["question"], "context": r["context"]} for r in ROWS]
    samples = read(write_rows(tmp_path / "d.jsonl", rows))
    result = evaluate_samples(mine, Exam(samples, SQUAD, QUICK), theirs)
    assert (result.metric, result.metrics) == (None, {})
    assert 0 <= result.against.agreement < 1


def test_eval_command(folders, here):
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
        evaluate_samples(classifier, Exam(samples, SQUAD2, QUICK))
    with pytest.raises(DataError, match="different things: 2 and 1"):
        evaluate_samples(answerer, Exam(samples, None, QUICK), classifier)
    one = read(tmp_path / "d.jsonl", SQUAD2, columns=("context",))
    with pytest.raises(DataError, match="two texts a sample, question and context"):
        evaluate_samples(answerer, Exam(one, SQUAD2, QUICK))
    data = write_rows(here / "d.jsonl", [{"question": "a", "context": "b"}])
    run = call("eval", folders[0], "--task", "squad", "--data", data)
    assert run.code == 1
    assert "no labels" in run.err


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"doc_stride": -1}, "doc_stride is -1; expected at least 0"),
        ({"max_answer": 0}, "max_answer is 0; expected at least 1"),
    ],
)
def test_impossible_options_are_refused(values, words):
    with pytest.raises(UsageError, match=words):
        AnswerOptions(**values)
