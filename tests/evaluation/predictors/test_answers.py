"""Answers of question answering: read from data, and scored as SQuAD does."""

import math

import pytest
import torch
from helpers.running import write_rows

from optin_cli.data.spec import DataSpec
from optin_cli.data.text.samples import load_samples
from optin_cli.errors import DataError
from optin_cli.evaluation.metrics import score_answers, score_metrics
from optin_cli.tasks.registry import load_task

SQUAD, SQUAD2 = load_task("squad"), load_task("squad_v2")
LETTERS = "a b c d e f g h i j k l m n o p q r s t"
ROWS = [
    {"question": "good film", "context": LETTERS, "answers": {"text": ["b c", "b"], "answer_start": [2, 2]}},
    {"question": "bad film", "context": "d e f", "answers": {"text": ["e"], "answer_start": [2]}},
    {"question": "film", "context": "g h", "answers": {"text": [], "answer_start": []}},
]


def read(path, task=SQUAD, **options):
    return load_samples(DataSpec(str(path), known=task, role=options.pop("role", "evaluation"), **options))


# Answers in data


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ({"text": ["a", "b"], "answer_start": [0, 2]}, ("a", "b")),
        ({"text": ["a"]}, ("a",)),
        ([{"text": "a", "answer_start": 0}, {"text": "b", "answer_start": 2}], ("a", "b")),
        (["a"], ("a",)),
        ({"text": [], "answer_start": []}, ()),
    ],
)
def test_forms_of_answers(tmp_path, written, expected):
    path = write_rows(tmp_path / "d.jsonl", [{"question": "q", "context": "a b", "answers": written}])
    samples = read(path, SQUAD2)
    assert (samples.texts, samples.answers, samples.labels) == ([("q", "a b")], [expected], None)
    assert samples.labelled


@pytest.mark.parametrize("kind", ["parquet", "saved"])
def test_answers_of_datasets(tmp_path, kind):
    import datasets

    data = datasets.Dataset.from_list(ROWS)
    path = tmp_path / ("d.parquet" if kind == "parquet" else "d")
    data.to_parquet(str(path)) if kind == "parquet" else data.save_to_disk(str(path))
    lines = read(write_rows(tmp_path / "d.jsonl", ROWS), SQUAD2)
    samples = read(path, SQUAD2)
    assert (samples.texts, samples.answers, samples.sha256) == (lines.texts, lines.answers, lines.sha256)


def test_selection_and_hash_do_not_depend_on_row_order(tmp_path):
    one = read(write_rows(tmp_path / "a.jsonl", ROWS), SQUAD2, limit=2)
    other = read(write_rows(tmp_path / "b.jsonl", ROWS[::-1]), SQUAD2, limit=2)
    assert (one.texts, one.answers, one.sha256) == (other.texts, other.answers, other.sha256)
    assert one.head(1).answers == one.answers[:1]


@pytest.mark.parametrize(
    ("rows", "task", "message"),
    [
        ([{"question": "q", "answers": {"text": ["a"]}}], SQUAD, "no column 'context'"),
        ([{"context": "q", "answers": {"text": ["a"]}}], SQUAD, "no column 'question'"),
        ([ROWS[0] | {"answers": 3}], SQUAD, r"Row 1 .* column 'answers': expected answers as"),
        ([ROWS[0] | {"answers": {"text": "a"}}], SQUAD, "expected answers as"),
        ([ROWS[0] | {"answers": {"start": [1]}}], SQUAD, "expected answers as"),
        ([ROWS[0], ROWS[1] | {"answers": None}], SQUAD, "answers in part: row 2 is the first of 1"),
        (ROWS, SQUAD, r"Row 3 .* has no answer, but every question of task squad has one"),
    ],
)
def test_bad_answers_are_refused(tmp_path, rows, task, message):
    with pytest.raises(DataError, match=message):
        read(write_rows(tmp_path / "d.jsonl", rows), task)


def test_calibration_takes_questions_with_contexts_and_needs_no_answers(tmp_path):
    rows = [{"question": r["question"], "context": r["context"]} for r in ROWS]
    samples = read(write_rows(tmp_path / "d.jsonl", rows), role="calibration")
    assert sorted(samples.texts) == sorted((r["question"], r["context"]) for r in ROWS)
    assert not samples.labelled
    mixed = read(write_rows(tmp_path / "e.jsonl", [ROWS[0], ROWS[1] | {"answers": None}]), role="calibration")
    assert not mixed.labelled


# Metrics


@pytest.mark.parametrize(
    ("given", "accepted", "exact", "f1"),
    [
        ("The  Cat!", ["cat"], 1, 1),
        ("a cat", ["an CAT."], 1, 1),
        ("black cat", ["white cat"], 0, 0.5),
        ("cat", ["the big black cat", "dog"], 0, 0.5),
        ("cat", ["dog", "Cat"], 1, 1),
        ("cat sat on mat", ["cat sat"], 0, 2 / 3),
        ("dog", ["cat"], 0, 0),
        ("", [], 1, 1),
        ("cat", [], 0, 0),
        ("", ["cat"], 0, 0),
        ("U.S.", ["us"], 1, 1),
    ],
)
def test_answers_are_normalised_and_scored_as_squad_does(given, accepted, exact, f1):
    values, error = score_answers(["squad_f1", "squad_em"], [given], [accepted])
    assert values == pytest.approx({"squad_f1": f1, "squad_em": exact})
    assert list(values) == ["squad_f1", "squad_em"]
    assert error is None


def test_answer_metrics_average_and_tell_their_error():
    values, error = score_answers(["squad_em", "squad_f1"], ["a b", "x", "x", "y"], [["b"], ["x"], ["y z", "q"], []])
    assert values == pytest.approx({"squad_em": 0.5, "squad_f1": 0.5})
    assert error == pytest.approx(math.sqrt(1 / 3) / 2)


def test_metrics_of_the_other_kind_are_refused():
    with pytest.raises(DataError, match="squad_em scores answers"):
        score_metrics(["squad_em"], torch.eye(2), torch.tensor([0, 1]), 2)
    with pytest.raises(DataError, match="accuracy scores numbers"):
        score_answers(["accuracy"], ["a"], [["a"]])
