"""Task files: every shipped one is valid; wrong ones and wrong names are refused with what to do."""

import json

import pytest

from optin_cli.errors import DataError
from optin_cli.evaluation.metrics import METRICS
from optin_cli.tasks.registry import load_task, own_task, parse_task, task_names

VALID = {
    "name": "toy",
    "dataset": {"path": "toy"},
    "text_columns": ["text"],
    "label_column": "label",
    "splits": {"calibration": "train", "evaluation": "test"},
    "metrics": ["accuracy"],
    "kind": "classification",
}
SCENES = {"input": "image", "text_columns": [], "kind": "semantic-segmentation", "metrics": ["mean_iou"]}


@pytest.mark.parametrize("name", task_names())
def test_shipped_task_is_named_as_its_file_and_uses_known_metrics(name):
    task = load_task(name)
    assert task.name == name
    assert set(task.metrics) <= set(METRICS)
    if task.kind == "semantic-segmentation":
        assert task.input == "image" and (task.label_names is None or task.maps.palette is not None)
    else:
        assert (task.label_names is None) == (task.kind != "classification" or task.dataset is None)


def test_tasks_are_shipped():
    glue = {"sst2", "mrpc", "stsb", "qnli", "qqp", "mnli", "mnli-mm", "rte", "cola"}
    images = {"imagenet-1k", "cifar10", "cifar100", "imagefolder"}
    scenes = {"ade20k", "camvid", "cityscapes", "semantic-segmentation"}
    own = {"classification", "multi-label", "regression", "token-classification", "question-answering"}
    searches = {"retrieval", "reranking"}
    named = {"squad", "squad_v2", "stsb-cosine", "masked-lm"}
    continued = {"causal-lm", "wikitext2", "c4", "lambada"}
    assert set(task_names()) == {*glue, *images, *scenes, *own, *searches, *named, *continued}
    assert load_task("mnli").splits.evaluation == "validation_matched"
    assert load_task("mnli-mm").splits.evaluation == "validation_mismatched"
    assert load_task("cola").metrics[0] == "matthews"


@pytest.mark.parametrize(
    ("kind", "takes", "expected"),
    [
        ("classification", "text", "classification"),
        ("classification", "image", "imagefolder"),
        ("multi-label", "text", "multi-label"),
        ("regression", "text", "regression"),
        ("token-classification", "text", "token-classification"),
        ("question-answering", "text", "question-answering"),
        ("semantic-segmentation", "image", "semantic-segmentation"),
        ("regression", "image", None),
        ("next-token-prediction", "text", "causal-lm"),
    ],
)
def test_own_data_has_a_task_of_every_kind(kind, takes, expected):
    found = own_task(kind, takes)
    assert (None if found is None else found.name) == expected


def test_unknown_task_names_the_nearest():
    with pytest.raises(DataError, match="no task named 'sst-2'") as caught:
        load_task("sst-2")
    assert "Did you mean sst2?" in caught.value.hint


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"metrics": ["bleu"]}, "metrics.0"),
        ({"metrics": []}, "metrics"),
        ({"metrics": ["accuracy", "accuracy"]}, "more than once"),
        ({"metrics": ["pearson"]}, "pearson does not fit a classification task"),
        ({"kind": "regression"}, "accuracy does not fit a regression task"),
        ({"kind": "regression", "metrics": ["pearson"], "label_names": ["a"]}, "no label_names"),
        ({"kind": "similarity", "metrics": ["spearman"]}, "two text_columns"),
        ({"label_column": None}, "a classification task has a label_column"),
        ({"kind": "fill-mask", "metrics": ["pseudo_perplexity"]}, "a fill-mask task has no label_column"),
        ({"joined": " "}, "joined does not fit a classification task"),
        ({"dataset": {"path": "toy", "files": {"train": "t.jsonl"}}}, "files are of the splits test, train"),
        ({"kind": "fill-mask", "label_column": None, "metrics": ["f1"]}, "f1 does not fit a fill-mask task"),
        ({"kind": "question-answering", "metrics": ["f1"]}, "f1 does not fit a question-answering task"),
        ({"unanswerable": True}, "unanswerable does not fit a classification task"),
        ({"text_columns": ["a", "b", "c"]}, "text_columns"),
        ({"splits": {"calibration": "train"}}, "splits.evaluation"),
        ({"colour": "red"}, "colour"),
        ({"text_columns": []}, "text_columns"),
        ({"unanswerable": None}, "unanswerable does not fit a classification task"),
        ({"kind": "multi-label", "metrics": ["f1"]}, "f1 does not fit a multi-label task"),
        ({"kind": "token-classification"}, "accuracy does not fit a token-classification task"),
        ({"text_columns": [], "dataset": {"path": "a"}}, "if it has a dataset, text_columns"),
        ({"kind": "retrieval"}, "accuracy does not fit a retrieval task"),
        ({"image_column": "image"}, "no image_column"),
        ({"input": "image"}, "an image task"),
        ({"input": "image", "text_columns": [], "kind": "regression", "metrics": ["pearson"]}, "an image task"),
        ({"kind": "semantic-segmentation", "metrics": ["mean_iou"]}, "is one on images"),
        ({"metrics": ["mean_iou"]}, "mean_iou does not fit a classification task"),
        ({"maps": {}}, "maps explain label maps"),
        (SCENES | {"maps": {"palette": [[1, 2, 3]]}}, "one colour for each of the label_names"),
        (SCENES | {"maps": {"colours": []}}, "maps.colours"),
    ],
)
def test_invalid_task_file_is_refused_with_its_place(tmp_path, change, problem):
    path = tmp_path / "toy.json"
    path.write_text(json.dumps(VALID | change))
    with pytest.raises(DataError, match=problem):
        parse_task(path)


def test_unreadable_task_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        parse_task(tmp_path / "absent.json")


def test_valid_task_file_parses(tmp_path):
    path = tmp_path / "toy.json"
    path.write_text(json.dumps(VALID))
    task = parse_task(path)
    assert (task.name, task.kind, task.input, task.metrics) == ("toy", "classification", "text", ("accuracy",))
    assert (task.dataset.path, task.dataset.config) == ("toy", None)
    assert (task.text_columns, task.image_column, task.label_column) == (("text",), None, "label")
    assert (task.splits.calibration, task.splits.evaluation) == ("train", "test")
    assert (task.label_names, task.label_range, task.unanswerable, task.each_alone) == (None, None, False, False)
