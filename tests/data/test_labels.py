"""Labels of texts and images become the model's classes, or are refused."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from helpers.pictures import CLASSES, image_folder, load_images, picture_rows, save_pictures

from optin_cli.data.labels import image_class_ids, label_ids, label_sets, tag_ids, value_rows
from optin_cli.data.text.samples import Samples
from optin_cli.errors import DataError
from optin_cli.tasks.registry import load_task


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (None, [0, 1, 2]),
        (("LABEL_0", "LABEL_1", "LABEL_2"), [0, 1, 2]),
        (("Coral", "Amber", "Blue"), [1, 2, 0]),
        (("coral", "x", "amber", "y", "blue"), [2, 4, 0]),
    ],
)
def test_classes_are_told_by_name_else_by_number(tmp_path, classes, expected):
    samples = load_images(image_folder(tmp_path / "set"))
    ids = image_class_ids(samples, None, classes, len(classes or CLASSES))
    assert ids == [expected[label] for label in samples.labels]


def test_a_task_names_classes_that_the_model_does_not(tmp_path):
    task = load_task("cifar10")
    folder = tmp_path / "set"
    for number, name in enumerate(("ship", "cat")):
        image_folder(tmp_path / name, 2, first=number, classes=("blue",))
        (tmp_path / name / "blue").rename(folder.mkdir(exist_ok=True) or folder / name)
    samples = load_images(folder)
    assert sorted(set(image_class_ids(samples, task, None, 10))) == [3, 8]
    assert sorted(set(image_class_ids(samples, load_task("imagefolder"), None, 2))) == [0, 1]
    assert image_class_ids(replace(samples, labels=None), task, None, 10) is None


@pytest.mark.parametrize(("classes", "count"), [(None, 10), (tuple("abcdefghij"), 10), (None, 2)])
def test_another_number_of_classes_names_both(tmp_path, classes, count):
    samples = load_images(image_folder(tmp_path / "set"))
    with pytest.raises(DataError, match=f"set has 3 classes, amber, blue, coral, but the model has {count}"):
        image_class_ids(samples, None, classes, count)


def test_numbers_beyond_the_model_are_refused(tmp_path):
    save_pictures(tmp_path / "saved", picture_rows())
    samples = replace(load_images(tmp_path / "saved"), label_names=None)
    assert image_class_ids(samples, None, None, 10) == samples.labels
    with pytest.raises(DataError, match="has 3 classes but the model has 2"):
        image_class_ids(samples, None, None, 2)


def test_tasks_name_every_class():
    assert len(load_task("imagenet-1k").label_names) == 1000
    assert len(load_task("cifar100").label_names) == 100
    assert {load_task(name).input for name in ("cifar10", "imagefolder")} == {"image"}


def config(*names, problem=None):
    return SimpleNamespace(num_labels=len(names), id2label=dict(enumerate(names)), problem_type=problem)


def labelled(*labels, names=None):
    return Samples("d", "all", [("a",)] * len(labels), list(labels), names, "0" * 64, len(labels))


MNLI, SST2, STSB = load_task("mnli"), load_task("sst2"), load_task("stsb")


@pytest.mark.parametrize(
    ("samples", "task", "model", "expected"),
    [
        (labelled(0, 2), MNLI, config("CONTRADICTION", "NEUTRAL", "ENTAILMENT"), {0: 2, 1: 1, 2: 0}),
        (labelled(0, 2), MNLI, config("LABEL_0", "LABEL_1", "LABEL_2"), {0: 0, 1: 1, 2: 2}),
        (labelled(0), None, config("x", "y"), {0: 0}),
        (labelled(1.0), SST2, config("negative", "positive"), {0: 0, 1: 1}),
        (labelled(0, names=("good", "bad")), SST2, config("bad", "good"), {0: 1, 1: 0}),
        (labelled("Positive"), SST2, config("NEGATIVE", "POSITIVE"), {0: 0, 1: 1, "Positive": 1}),
        (labelled("positive"), SST2, config("LABEL_0", "LABEL_1"), {0: 0, 1: 1, "positive": 1}),
        (labelled(2, 3.5), STSB, config("LABEL_0"), {2: 2.0, 3.5: 3.5}),
        (labelled(2), None, config("a", "b", problem="regression"), {2: 2.0}),
    ],
)
def test_labels_become_the_models_classes(samples, task, model, expected):
    assert label_ids(samples, task, model) == expected


@pytest.mark.parametrize(
    ("samples", "task", "model", "message"),
    [
        (labelled(2), SST2, config("a", "b"), "label 2, but the model has 2 classes"),
        (labelled(-2), None, config("a", "b"), "label -2"),
        (labelled(0.5), None, config("a", "b"), "label 0.5"),
        (labelled("x"), SST2, config("a", "b"), "label 'x', which is no class of the model: a, b"),
        (labelled("x"), STSB, config("a"), "expected a number"),
        (labelled(0), SST2, config("a"), "classification task, but the model has 1 output"),
        (labelled(0.5), STSB, config("a", "b"), "regression task, but the model has 2 outputs"),
    ],
)
def test_labels_without_a_class_are_refused(samples, task, model, message):
    with pytest.raises(DataError, match=message):
        label_ids(samples, task, model)


def test_unlabelled_samples_have_no_label_map():
    assert label_ids(Samples("d", "all", [("a",)], None, None, "0" * 64, 1), SST2, config("a", "b")) is None


def several(*rows, names=None):
    return replace(labelled(*rows, names=names), labels=None, label_lists=[*rows])


@pytest.mark.parametrize(
    ("samples", "model", "expected"),
    [
        (several(("B", "a"), ()), config("a", "b", "c"), [[1, 1, 0], [0, 0, 0]]),
        (several((2,), (0, 1)), config("a", "b", "c"), [[0, 0, 1], [1, 1, 0]]),
        (several((0, 0, 1), (1, 1, 0)), config("a", "b", "c"), [[0, 0, 1], [1, 1, 0]]),
        (several((0.0, 1.0), (1.0, 0.0)), config("a", "b"), [[0, 1], [1, 0]]),
        (several((0, 1), (0,)), config("a", "b"), [[1, 1], [1, 0]]),
        (several((0, 0, 1), names=("c", "b", "a")), config("a", "b", "c"), [[1, 0, 0]]),
        (several((0,), names=("c", "b", "a")), config("a", "b", "c"), [[0, 0, 1]]),
        (several((1,), (0,)), config("a"), [[1], [0]]),
    ],
)
def test_several_labels_mark_the_models_classes(samples, model, expected):
    assert label_sets(samples, load_task("multi-label"), model) == expected


@pytest.mark.parametrize(
    ("samples", "ignored", "expected"),
    [
        (several(("O", "b-per"), ("B-LOC",)), {-100}, [[0, 1], [2]]),
        (several((0, -100, 2)), {-100}, [[0, None, 2]]),
        (several((0, 1, 2)), {-100, 0}, [[None, 1, 2]]),
        (several((1, 0), names=("B-PER", "O", "B-LOC")), {-100}, [[0, 1]]),
        (several((1, 0), names=("x", "y")), {-100}, [[1, 0]]),
    ],
)
def test_tags_are_the_models_classes_or_do_not_count(samples, ignored, expected):
    assert tag_ids(samples, load_task("token-classification"), config("O", "B-PER", "B-LOC"), ignored) == expected


def test_tags_and_classes_that_the_model_lacks_are_refused():
    with pytest.raises(DataError, match="label 'B-MISC', which is no class of the model: o, b-per"):
        tag_ids(several(("B-MISC",)), None, config("O", "B-PER"), set())
    with pytest.raises(DataError, match="label 3, but the model has 2 classes"):
        label_sets(several((3,)), None, config("a", "b"))


def test_lists_of_numbers_are_as_long_as_what_is_predicted():
    assert value_rows(several((1, 2.5)), 2) == [[1.0, 2.5]]
    assert value_rows(several((1,), (2.5,)), 1) == [1.0, 2.5]
    for row, message in (((1,), "predicts 2 numbers"), (("a", 1), "expected a number")):
        with pytest.raises(DataError, match=message):
            value_rows(several(row), 2)
    assert value_rows(labelled(1), 2) is label_sets(labelled(1), None, config("a")) is None


def test_numbers_in_data_of_other_columns_are_the_models():
    mine = config("positive", "negative")
    assert label_ids(labelled(0, 1), SST2, mine) == {0: 1, 1: 0}
    own = replace(labelled(0, 1), own=True)
    assert label_ids(own, SST2, mine) == {0: 0, 1: 1}
    assert label_ids(replace(own, labels=["Negative"]), SST2, mine)["Negative"] == 1
    assert label_ids(replace(own, label_names=("negative", "positive")), None, mine) == {0: 1, 1: 0}
