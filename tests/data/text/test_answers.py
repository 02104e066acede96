"""Answers to questions, read from every form of data."""

import pytest
from helpers.questions import ROWS, SQUAD, SQUAD2, read
from helpers.running import write_rows

from optin_cli.errors import DataError

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
def test_answers_of_every_form_are_read(tmp_path, written, expected):
    path = write_rows(tmp_path / "d.jsonl", [{"question": "q", "context": "a b", "answers": written}])
    samples = read(path, SQUAD2)
    assert (samples.texts, samples.answers, samples.labels) == ([("q", "a b")], [expected], None)
    assert samples.labelled


@pytest.mark.parametrize("kind", ["parquet", "saved"])
def test_answers_of_datasets_equal_those_of_lines(tmp_path, kind):
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
