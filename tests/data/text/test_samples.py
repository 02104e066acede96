"""Text samples: columns, labels, and datasets that declare class names."""

import pytest
from helpers.datasets import PAIR, as_pairs, load_texts, save_texts
from helpers.running import write_rows

from optin_cli.tasks.registry import load_task

# Reading


def test_parquet_and_saved_datasets_declare_class_names(tmp_path, monkeypatch):
    import datasets

    save_texts(tmp_path / "one", PAIR)
    save_texts(tmp_path / "many", PAIR, splits=("train", "test"))
    parquet = tmp_path / "d[1].parquet"
    datasets.load_from_disk(str(tmp_path / "one")).to_parquet(str(parquet))
    for source, split in [(tmp_path / "one", "all"), (tmp_path / "many", "test"), (parquet, "all")]:
        samples = load_texts(source)
        assert as_pairs(samples) == [(("bad film",), 0), (("good film",), 1)]
        assert (samples.split, samples.label_names) == (split, ("bad", "good"))
    assert load_texts(tmp_path / "many", split="calibration").split == "train"


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
    path = write_rows(tmp_path / "d.jsonl", [{c: c for c in columns}])
    assert load_texts(path, **options).texts == [expected]


def test_data_replaces_the_rows_of_a_task(tmp_path):
    path = write_rows(tmp_path / "d.jsonl", [{"sentence": "a", "label": 0, "text": "not this"}])
    assert load_texts("sst2", data=path).texts == [("a",)]


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
    found = load_texts(write_rows(tmp_path / "d.jsonl", rows), split=split)
    if expected is None:
        assert found.labels is None
    else:
        by_text = dict(zip(found.texts, found.labels, strict=True))
        assert [by_text[(str(i),)] for i in range(len(labels))] == expected
