"""Columns with several labels a row, rows of words and tags, and labels that nobody needs."""

import json

import pytest
from helpers.datasets import load_texts
from helpers.running import write_rows

from optin_cli.data.spec import DataSpec
from optin_cli.data.text.samples import load_samples
from optin_cli.errors import DataError
from optin_cli.tasks.registry import load_task

MULTI, TAGS, NUMBERS = (load_task(name) for name in ("multi-label", "token-classification", "regression"))


def by_text(samples):
    """Lists of labels by text."""
    assert samples.labels is None
    return dict(zip([text for (text,) in samples.texts], samples.label_lists, strict=True))


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (["x", "y"], ("x", "y")),
        ([], ()),
        ([1, 0, 1], (1, 0, 1)),
        ([1.0, 0.0], (1.0, 0.0)),
        ([True, False], (1, 0)),
        ("x y", ("x y",)),
        ("['x', 'y']", ("x", "y")),
        ('["x", "y"]', ("x", "y")),
        (2, (2,)),
    ],
)
def test_a_text_has_several_labels(tmp_path, label, expected):
    rows = [{"text": "a", "labels": label}, {"text": "b", "labels": ["x"]}]
    samples = load_texts(write_rows(tmp_path / "d.jsonl", rows), task=MULTI)
    assert by_text(samples) == {"a": expected, "b": ("x",)}
    assert samples.labelled and samples.head(1).label_lists == samples.label_lists[:1]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["x"], None], "labelled in part: row 2 is the first of 1"),
        ([["x", None]], "Row 1 of d.jsonl, column 'labels': label 2 of 2 is empty"),
        ([[["x"]]], "expected a number or a name"),
        ([{"x": 1}], "expected a number or a name"),
    ],
)
def test_labels_of_another_form_are_refused(tmp_path, rows, message):
    path = write_rows(tmp_path / "d.jsonl", [{"text": "a", "labels": labels} for labels in rows])
    with pytest.raises(DataError, match=message):
        load_texts(path, task=MULTI)


def test_columns_called_as_the_classes_are_labels(tmp_path):
    path = tmp_path / "d.csv"
    path.write_text("text,Calm,angry\na,0,1\nb,1,1\n")
    spec = DataSpec(str(path), known=MULTI, role="evaluation")
    assert by_text(load_samples(spec, classes=("angry", "calm"))) == {"a": (1, 0), "b": (1, 1)}
    assert not load_samples(spec, classes=("angry", "sad")).labelled
    path.write_text("text,calm,angry\na,0,\n")
    with pytest.raises(DataError, match="expected a number in each of the columns angry, calm"):
        load_samples(spec, classes=("angry", "calm"))


def test_a_model_of_several_numbers_has_lists_of_them(tmp_path):
    path = write_rows(tmp_path / "d.jsonl", [{"text": "a", "score": [0.5, 1]}, {"text": "b", "score": [2, 3]}])
    assert by_text(load_texts(path, task=NUMBERS)) == {"a": (0.5, 1), "b": (2, 3)}


@pytest.mark.parametrize(
    "label", [float("nan"), [0, 1], [-100, 0], {"a": 1}, "what?", None], ids=lambda label: type(label).__name__
)
def test_calibration_looks_at_no_labels(tmp_path, label):
    path = write_rows(tmp_path / "d.jsonl", [{"text": "a", "label": label}, {"text": "b", "label": 0}])
    samples = load_texts(path, split="calibration")
    assert not samples.labelled and sorted(samples.texts) == [("a",), ("b",)]
    assert samples.sha256 == load_texts(write_rows(tmp_path / "e.jsonl", [{"text": "b"}, {"text": "a"}])).sha256


# Words

SENTENCES = [(("EU", "rejects", "it"), ("B-ORG", "O", "O")), (("Bonn",), ("B-LOC",))]
CONLL = "-DOCSTART- -X- O\n\nEU NNP B-ORG\nrejects VBZ O\nit PRP O\n\n\nBonn NNP B-LOC"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("d.conll", CONLL),
        ("d.txt", CONLL),
        ("d.bio", CONLL.replace(" ", "\t").replace("\n", "\r\n")),
        ("d.jsonl", "".join(json.dumps({"tokens": w, "ner_tags": t}) + "\n" for w, t in SENTENCES)),
        ("d.json", json.dumps([{"words": w, "tags": t, "text": "not this"} for w, t in SENTENCES])),
        ("d.csv", "tokens,labels\n\"['EU', 'rejects', 'it']\",\"['B-ORG', 'O', 'O']\"\n['Bonn'],['B-LOC']\n"),
        ("d.tsv", "text\tner_tags\nEU rejects it\tB-ORG O O\nBonn\tB-LOC\n"),
    ],
)
def test_tagged_words_of_every_form(tmp_path, name, content):
    (tmp_path / name).write_text(content, newline="")
    samples = load_texts(tmp_path / name, task=TAGS)
    assert sorted(zip(samples.words, samples.label_lists, strict=True)) == sorted(SENTENCES, key=lambda pair: pair[0])
    assert {text for (text,) in samples.texts} == {"EU rejects it", "Bonn"}


def test_words_alone_calibrate(tmp_path):
    samples = load_texts(write_rows(tmp_path / "d.jsonl", [{"tokens": ["a", "b"]}, {"tokens": ["c"]}]))
    assert sorted(samples.words) == [("a", "b"), ("c",)] and samples.head(1).words == samples.words[:1]
    (tmp_path / "d.conll").write_text("a\nb\n\nc\n")
    assert load_texts(tmp_path / "d.conll", split="calibration").sha256 == samples.sha256


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.conll", "a O\nb\n", "line 2: expected 2 columns as in the first line, found 1"),
        ("d.jsonl", '{"tokens": ["a", "b"], "tags": [0]}', "Row 1 of d.jsonl has 2 words but 1 labels"),
        ("d.jsonl", '{"tokens": ["a", 1], "tags": [0, 0]}', "column 'tokens': expected text, found 1"),
        ("d.jsonl", '{"tokens": 1, "tags": [0]}', "expected a list of words, found 1"),
    ],
)
def test_faulty_rows_of_words_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        load_texts(tmp_path / name, task=TAGS)


def test_lists_of_classes_declare_their_names(tmp_path):
    import datasets

    tags = datasets.ClassLabel(names=["O", "B-PER"])
    features = {"tokens": datasets.Sequence(datasets.Value("string")), "ner_tags": datasets.Sequence(tags)}
    rows = [{"tokens": ["a", "b"], "ner_tags": [0, 1]}]
    datasets.Dataset.from_list(rows, features=datasets.Features(features)).save_to_disk(str(tmp_path / "saved"))
    samples = load_texts(tmp_path / "saved", task=TAGS)
    assert (samples.label_names, samples.label_lists) == (("O", "B-PER"), [(0, 1)])
