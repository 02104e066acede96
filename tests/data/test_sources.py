"""Where data comes from: files, folders of splits, tasks, and sources that contradict each other."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.datasets import PAIR, load_texts, save_texts
from helpers.running import write_rows

from optin_cli.errors import DataError, UsageError
from optin_cli.tasks.registry import load_task


def test_a_folder_of_split_files_is_read_by_role(tmp_path):
    for split in ("train", "validation", "validation_matched"):
        write_rows(tmp_path / f"{split}.jsonl", [{"text": split}])
    write_rows(tmp_path / "test-00000-of-00002.jsonl", [{"text": "one"}])
    write_rows(tmp_path / "test-00001-of-00002.jsonl", [{"text": "two"}])
    assert load_texts(tmp_path, split="calibration").texts == [("train",)]
    assert load_texts(tmp_path).texts == [("validation",)]
    columns = {"task": load_task("mnli"), "columns": ["text"]}
    assert load_texts(tmp_path, **columns).texts == [("validation_matched",)]
    (tmp_path / "validation.jsonl").unlink()
    assert sorted(load_texts(tmp_path).texts) == [("one",), ("two",)]
    assert load_texts(tmp_path).name == tmp_path.name


def test_faulty_folders_are_refused(tmp_path):
    with pytest.raises(DataError, match="holds no data files"):
        load_texts(tmp_path)
    write_rows(tmp_path / "train.jsonl", PAIR)
    with pytest.raises(DataError, match="has splits train; expected validation or test for evaluation"):
        load_texts(tmp_path)
    (tmp_path / "train.txt").write_text("a")
    with pytest.raises(DataError, match=r"more than once: train\.jsonl, train\.txt"):
        load_texts(tmp_path, split="calibration")
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(DataError, match="cannot be read as a saved dataset"):
        load_texts(tmp_path)
    save_texts(tmp_path / "many", PAIR, splits=("train",))
    with pytest.raises(DataError, match="has splits train; expected validation or test"):
        load_texts(tmp_path / "many")


def test_unreachable_dataset_says_how_to_pass_a_copy(monkeypatch, tmp_path):
    import datasets

    def offline(*args, **kwargs):
        raise ConnectionError("Couldn't reach it\nand more")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    bars = datasets.are_progress_bars_disabled()
    with pytest.raises(DataError, match=r"nyu-mll/glue/sst2 of task sst2 is neither .* Couldn't reach it") as caught:
        load_texts("sst2")
    assert "--data" in caught.value.hint
    assert datasets.are_progress_bars_disabled() == bars


def test_task_dataset_is_read_by_its_split(monkeypatch):
    import datasets

    asked = []

    def fake(path, config, *, split):
        asked.append((path, config, split))
        return datasets.Dataset.from_list([{"sentence": "a", "label": 1}])

    monkeypatch.setattr(datasets, "load_dataset", fake)
    samples = load_texts("sst2", split="calibration", labelled=True)
    assert asked == [("nyu-mll/glue", "sst2", "train")]
    assert (samples.name, samples.split, samples.texts, samples.labels) == ("sst2", "train", [("a",)], [1])
    assert load_texts(None, task=load_task("sst2"), split="calibration", labelled=True) == samples
    assert load_texts("sst2", split="calibration").labels is None


@pytest.mark.parametrize(
    ("source", "options", "error", "message"),
    [
        ("d.jsonl", {"columns": ["body"]}, DataError, "no column 'body': it has columns text, label"),
        ("d.jsonl", {"task": load_task("mnli")}, DataError, "no column 'premise'"),
        ("d.jsonl", {"label_column": "stars"}, DataError, "no label column 'stars'"),
        ("d.jsonl", {"limit": 0}, UsageError, "number of samples is 0"),
        ("d.jsonl", {"columns": ["a", "b", "c"]}, UsageError, "3 text columns"),
        ("d.jsonl", {"data": Path("d.jsonl")}, UsageError, "Both"),
        ("absent.jsonl", {}, DataError, "neither an existing file or folder nor a known task"),
        ("", {}, DataError, "neither an existing file or folder nor a known task"),
        ("sst2", {"data": Path("absent.jsonl")}, DataError, "absent.jsonl does not exist"),
        ("sst2", {"task": load_task("mnli")}, UsageError, "of task sst2, but task mnli"),
        (None, {}, UsageError, "No data was named"),
    ],
)
def test_contradicting_or_missing_sources_are_refused(*, tmp_path, monkeypatch, source, options, error, message):
    monkeypatch.chdir(tmp_path)
    write_rows(Path("d.jsonl"), PAIR)
    with pytest.raises(error, match=message):
        load_texts(source, **options)


def config(*names, problem=None):
    return SimpleNamespace(num_labels=len(names), id2label=dict(enumerate(names)), problem_type=problem)
