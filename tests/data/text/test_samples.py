"""Text samples: columns, labels, and datasets that declare class names."""

import json
from pathlib import Path

import pytest
from helpers.datasets import save_texts

from optin_cli.data.spec import DataSpec
from optin_cli.data.text.samples import load_samples
from optin_cli.tasks.registry import load_task

PAIR = [{"text": "good film", "label": 1}, {"text": "bad film", "label": 0}]


def write_lines(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def load(source, *, split="evaluation", task=None, data=None, **options):
    source = None if source is None else str(source)
    return load_samples(DataSpec(source, data, known=task, role=split, **options))


def as_pairs(samples):
    return sorted(zip(samples.texts, samples.labels or [None] * len(samples.texts), strict=True))


# Reading


def test_parquet_and_saved_datasets_declare_class_names(tmp_path, monkeypatch):
    import datasets

    save_texts(tmp_path / "one", PAIR)
    save_texts(tmp_path / "many", PAIR, splits=("train", "test"))
    parquet = tmp_path / "d[1].parquet"
    datasets.load_from_disk(str(tmp_path / "one")).to_parquet(str(parquet))
    for source, split in [(tmp_path / "one", "all"), (tmp_path / "many", "test"), (parquet, "all")]:
        samples = load(source)
        assert as_pairs(samples) == [(("bad film",), 0), (("good film",), 1)]
        assert (samples.split, samples.label_names) == (split, ("bad", "good"))
    assert load(tmp_path / "many", split="calibration").split == "train"


# Columns and sources


@pytest.mark.parametrize(
    ("columns", "options", "expected"),
    [
        (["premise", "hypothesis", "text"], {}, ("premise", "hypothesis")),
        (["question", "sentence"], {}, ("question", "sentence")),
        (["context", "question"], {}, ("question", "context")),
        (["sentence", "id"], {}, ("sentence",)),
        (["question1", "question2"], {"task": load_task("qqp")}, ("question1", "question2")),
        (["text", "body"], {"columns": ["body"]}, ("body",)),
        (["text", "body"], {"columns": ["body", "text"]}, ("body", "text")),
    ],
)
def test_text_columns_are_found_or_named(tmp_path, columns, options, expected):
    path = write_lines(tmp_path / "d.jsonl", [{c: c for c in columns}])
    assert load(path, **options).texts == [expected]


def test_data_replaces_the_rows_of_a_task(tmp_path):
    path = write_lines(tmp_path / "d.jsonl", [{"sentence": "a", "label": 0, "text": "not this"}])
    assert load("sst2", data=path).texts == [("a",)]


# Labels


@pytest.mark.parametrize(
    ("labels", "split", "expected"),
    [
        (["0.5", "3"], "evaluation", [0.5, 3.0]),
        ([1, 2.5], "evaluation", [1.0, 2.5]),
        (["yes", "no"], "evaluation", ["yes", "no"]),
        ([None, -1], "evaluation", None),
        (["", ""], "evaluation", None),
        ([-1.0, -1.0], "evaluation", None),
        ([-1.0, 0.5], "evaluation", [-1.0, 0.5]),
        ([1, None], "calibration", None),
    ],
)
def test_labels_of_every_type_are_read(tmp_path, labels, split, expected):
    rows = [{"text": str(i), "label": label} for i, label in enumerate(labels)]
    found = load(write_lines(tmp_path / "d.jsonl", rows), split=split)
    if expected is None:
        assert found.labels is None
    else:
        by_text = dict(zip(found.texts, found.labels, strict=True))
        assert [by_text[(str(i),)] for i in range(len(labels))] == expected
