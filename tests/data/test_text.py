"""Reading, selecting, labelling and batching of text data."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optin_cli.data.labels import label_ids
from optin_cli.data.spec import DataSpec
from optin_cli.data.text.samples import Samples, load_samples
from optin_cli.data.text.tokenize import make_batches, usable_length
from optin_cli.errors import DataError, UsageError
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


def saved(path: Path, rows, splits=()):
    import datasets

    names = datasets.ClassLabel(names=["bad", "good"])
    features = datasets.Features({"text": datasets.Value("string"), "label": names})
    data = datasets.Dataset.from_list(rows, features=features)
    (datasets.DatasetDict(dict.fromkeys(splits, data)) if splits else data).save_to_disk(str(path))


def make_tokenizer(**options):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film", "a", "##b", "very"]
    inner = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    defaults = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    defaults["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=inner, **(defaults | options))


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


# Reading


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("d.jsonl", '{"text": "good film", "label": 1}\n\n{"text": "bad film", "label": 0}\n'),
        ("d.jsonl", '\ufeff{"text": "good film", "label": true}\r\n{"text": "bad film", "label": false}'),
        ("d.json", json.dumps(PAIR, indent=1)),
        ("d.json", '{"text": "good film", "label": 1}\n{"text": "bad film", "label": 0}\n'),
        ("d.csv", 'text,label\n"good film",1\nbad film,0\n'),
        ("d.tsv", "text\tlabel\r\ngood film\t1\r\n\r\nbad film\t0\r\n"),
        ("[d]*.jsonl", '{"text": "good film", "label": "1"}\n{"text": "bad film", "label": "0"}\n'),
    ],
)
def test_text_formats_hold_the_same_samples(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8", newline="")
    (tmp_path / "dx.jsonl").write_text("what a careless glob would read")
    samples = load(path)
    assert as_pairs(samples) == [(("bad film",), 0), (("good film",), 1)]
    assert (samples.name, samples.split, samples.total) == (name, "all", 2)
    assert samples.sha256 == load(write_lines(tmp_path / "same.jsonl", PAIR)).sha256


def test_plain_text_is_one_sample_a_line(tmp_path):
    path = tmp_path / "d.txt"
    path.write_text("good film\n\n  \n2020-01-01\nNA\n", encoding="utf-8")
    samples = load(path)
    assert as_pairs(samples) == [(("2020-01-01",), None), (("NA",), None), (("good film",), None)]
    assert samples.labels is None
    assert load(path, task=load_task("sst2")).texts == samples.texts


def test_tab_separated_quotes_are_ordinary_characters(tmp_path):
    path = tmp_path / "d.tsv"
    path.write_text('text\tlabel\n"good\t1\n', encoding="utf-8")
    assert as_pairs(load(path)) == [(('"good',), 1)]


def test_parquet_and_saved_datasets_declare_class_names(tmp_path, monkeypatch):
    import datasets

    saved(tmp_path / "one", PAIR)
    saved(tmp_path / "many", PAIR, splits=("train", "test"))
    parquet = tmp_path / "d[1].parquet"
    datasets.load_from_disk(str(tmp_path / "one")).to_parquet(str(parquet))
    for source, split in [(tmp_path / "one", "all"), (tmp_path / "many", "test"), (parquet, "all")]:
        samples = load(source)
        assert as_pairs(samples) == [(("bad film",), 0), (("good film",), 1)]
        assert (samples.split, samples.label_names) == (split, ("bad", "good"))
    assert load(tmp_path / "many", split="calibration").split == "train"


def test_folder_of_split_files(tmp_path):
    for split in ("train", "validation", "validation_matched"):
        write_lines(tmp_path / f"{split}.jsonl", [{"text": split}])
    write_lines(tmp_path / "test-00000-of-00002.jsonl", [{"text": "one"}])
    write_lines(tmp_path / "test-00001-of-00002.jsonl", [{"text": "two"}])
    assert load(tmp_path, split="calibration").texts == [("train",)]
    assert load(tmp_path).texts == [("validation",)]
    columns = {"task": load_task("mnli"), "columns": ["text"]}
    assert load(tmp_path, **columns).texts == [("validation_matched",)]
    (tmp_path / "validation.jsonl").unlink()
    assert sorted(load(tmp_path).texts) == [("one",), ("two",)]
    assert load(tmp_path).name == tmp_path.name


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.jsonl", b'{"text": "a"}\n\n{"text": \n', "line 3"),
        ("d.jsonl", b'{"text": "a"}\n[1]\n', "line 2: expected a JSON object"),
        ("d.jsonl", b'{"text": "a"}\n{"text": "\xe9"}\n', r"not UTF-8 text \(line 2\)"),
        ("d.jsonl", b"", "has no rows"),
        (
            "d.jsonl",
            b'{"text": "a"}\n{"text": 2}\n',
            "Row 2 of d.jsonl, column 'text': expected text, found 2",
        ),
        (
            "d.jsonl",
            b'{"text": "a"}\n{"label": 2}\n',
            "Row 2 of d.jsonl, column 'text': expected text, found None",
        ),
        ("d.jsonl", b'{"text": "\\ud800"}\n', "Row 1 of d.jsonl.*surrogate"),
        ("d.jsonl", b'{"text": "a", "label": [1, 2]}\n', "Row 1 of d.jsonl, column 'label'"),
        ("d.jsonl", b'{"text": "a", "label": NaN}\n', "column 'label'.*found nan"),
        ("d.jsonl", b'{"text": "a", "label": 1}\n{"text": "b", "label": "x"}\n', "mixes text and numbers"),
        ("d.jsonl", b'{"text": "a", "label": 1}\n{"text": "b", "label": -1}\n', "labelled in part: row 2"),
        ("d.jsonl", b'{"body": "a", "id": 1}\n', "columns body, id"),
        ("d.json", b'[{"text": "a"},\n{"text"}]', "line 2"),
        ("d.json", b'[{"text": "a"}, 3]', "row 2: expected a JSON object"),
        ("d.json", b"[]", "has no rows"),
        ("d.csv", b"text,label\n", "has no rows"),
        ("d.csv", b"text,label\na,1\nb\n", "line 3: expected 2 fields as in the header, found 1"),
        ("d.csv", b'text,label\na,1\n"b,1\n', "line 3: unexpected end of data"),
        ("d.csv", b"text,text\na,1\n", "more than one column named 'text'"),
        ("d.txt", b"\n \n", "has no rows"),
        ("d.parquet", b"nope", "cannot be read as a Parquet file"),
        ("d.xlsx", b"", "ending .xlsx is not one of .jsonl"),
    ],
)
def test_faulty_files_are_refused_by_place(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        load(path)


def test_faulty_folders_are_refused(tmp_path):
    with pytest.raises(DataError, match="holds no data files"):
        load(tmp_path)
    write_lines(tmp_path / "train.jsonl", PAIR)
    with pytest.raises(DataError, match="has splits train; expected validation or test for evaluation"):
        load(tmp_path)
    (tmp_path / "train.txt").write_text("a")
    with pytest.raises(DataError, match=r"more than once: train\.jsonl, train\.txt"):
        load(tmp_path, split="calibration")
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(DataError, match="cannot be read as a saved dataset"):
        load(tmp_path)
    saved(tmp_path / "many", PAIR, splits=("train",))
    with pytest.raises(DataError, match="has splits train; expected validation or test"):
        load(tmp_path / "many")


def test_unreachable_dataset_says_how_to_pass_a_copy(monkeypatch, tmp_path):
    import datasets

    def offline(*args, **kwargs):
        raise ConnectionError("Couldn't reach it\nand more")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    bars = datasets.are_progress_bars_disabled()
    with pytest.raises(DataError, match=r"nyu-mll/glue/sst2 of task sst2 is neither .* Couldn't reach it") as caught:
        load("sst2")
    assert "--data" in caught.value.hint
    assert datasets.are_progress_bars_disabled() == bars


def test_task_dataset_is_read_by_its_split(monkeypatch):
    import datasets

    asked = []

    def fake(path, config, *, split):
        asked.append((path, config, split))
        return datasets.Dataset.from_list([{"sentence": "a", "label": 1}])

    monkeypatch.setattr(datasets, "load_dataset", fake)
    samples = load("sst2", split="calibration")
    assert asked == [("nyu-mll/glue", "sst2", "train")]
    assert (samples.name, samples.split, samples.texts, samples.labels) == ("sst2", "train", [("a",)], [1])
    assert load(None, task=load_task("sst2"), split="calibration") == samples


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
def test_text_columns(tmp_path, columns, options, expected):
    path = write_lines(tmp_path / "d.jsonl", [{c: c for c in columns}])
    assert load(path, **options).texts == [expected]


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
def test_contradicting_or_missing_sources(*, tmp_path, monkeypatch, source, options, error, message):
    monkeypatch.chdir(tmp_path)
    write_lines(Path("d.jsonl"), PAIR)
    with pytest.raises(error, match=message):
        load(source, **options)


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
def test_label_types(tmp_path, labels, split, expected):
    rows = [{"text": str(i), "label": label} for i, label in enumerate(labels)]
    found = load(write_lines(tmp_path / "d.jsonl", rows), split=split)
    if expected is None:
        assert found.labels is None
    else:
        by_text = dict(zip(found.texts, found.labels, strict=True))
        assert [by_text[(str(i),)] for i in range(len(labels))] == expected


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
def test_labels_the_model_has_no_class_for(samples, task, model, message):
    with pytest.raises(DataError, match=message):
        label_ids(samples, task, model)


def test_unlabelled_samples_have_no_label_map():
    assert label_ids(Samples("d", "all", [("a",)], None, None, "0" * 64, 1), SST2, config("a", "b")) is None


# Selection and batches

ROWS = st.lists(
    st.tuples(st.sampled_from(["good", "bad film", "a", "very good"]), st.integers(0, 1)),
    min_size=1,
    max_size=12,
)


@settings(max_examples=25, deadline=None)
@given(rows=ROWS, limit=st.none() | st.integers(1, 12), seed=st.integers(0, 3), data=st.data())
def test_nothing_depends_on_the_order_of_rows(*, tmp_path_factory, tokenizer, rows, limit, seed, data):
    folder = tmp_path_factory.mktemp("order")
    results = []
    for order in (rows, data.draw(st.permutations(rows))):
        path = write_lines(folder / "d.jsonl", [{"text": t, "label": y} for t, y in order])
        samples = load(path, limit=limit, seed=seed)
        batches = make_batches(samples, tokenizer, batch_size=3, max_length=8, label_map={0: 0, 1: 1})
        results.append((samples, [(b.keys, b.inputs["input_ids"].tolist(), b.labels.tolist()) for b in batches]))
        unlabelled = write_lines(folder / "u.jsonl", [{"text": t} for t, _ in order])
        assert load(unlabelled, limit=limit, seed=seed).texts == samples.texts
    assert results[0] == results[1]
    assert len(results[0][0].texts) == min(limit or len(rows), len(rows))
    assert results[0][0].total == len(rows)
    keys = [key for batch_keys, _, _ in results[0][1] for key in batch_keys]
    assert len(set(keys)) == len(keys)


def test_seed_decides_the_selection_and_limits_nest(tmp_path):
    path = write_lines(tmp_path / "d.jsonl", [{"text": f"row {i}"} for i in range(50)])
    ten = load(path, limit=10, seed=0)
    assert ten.texts == load(path, limit=20, seed=0).texts[:10]
    assert set(ten.texts) != set(load(path, limit=10, seed=1).texts)
    assert ten.sha256 != load(path, limit=11, seed=0).sha256
    assert load(path, seed=0).sha256 == load(path, seed=1).sha256


def samples_of(*texts, labels=None):
    return Samples("d", "all", [t if isinstance(t, tuple) else (t,) for t in texts], labels, None, "0" * 64, len(texts))


def test_batches_are_sorted_by_length_and_padded(tokenizer):
    samples = samples_of("good bad film", "good", "bad film", "ab", labels=[0, 1, 1, 0])
    first, last = make_batches(samples, tokenizer, batch_size=2, max_length=8, label_map={0: 0, 1: 1})
    assert first.size == last.size == 2
    assert first.inputs["input_ids"].shape == (2, 4)
    assert last.inputs["input_ids"][-1].tolist() == [2, 4, 5, 6, 3]
    assert last.token_mask.sum(1).tolist() == [4, 5]
    assert last.labels.tolist()[-1] == 0
    assert last.labels.dtype == torch.int64
    moved = last.to("meta")
    assert moved.inputs["input_ids"].device.type == moved.labels.device.type == "meta"
    assert moved.keys == last.keys


def test_pairs_truncation_left_padding_and_values():
    left = make_tokenizer(padding_side="left")
    samples = samples_of(("good film", "bad"), ("a", "a"), labels=[0.5, 2.0])
    (batch,) = make_batches(samples, left, batch_size=2, max_length=5, label_map={0.5: 0.5, 2.0: 2.0})
    assert sorted(batch.inputs["input_ids"].tolist()) == [[2, 4, 3, 5, 3], [2, 7, 3, 7, 3]]
    assert batch.inputs["token_type_ids"].tolist() == [[0, 0, 0, 1, 1]] * 2
    assert batch.labels.dtype == torch.float32
    (single,) = make_batches(samples_of("a", "good film"), left, batch_size=2, max_length=5)
    assert single.inputs["input_ids"].tolist() == [[0, 2, 7, 3], [2, 4, 6, 3]]
    assert single.inputs["attention_mask"].tolist() == [[0, 1, 1, 1], [1, 1, 1, 1]]
    assert single.labels is None


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_size": 0, "max_length": 8}, UsageError, "batch size is 0"),
        ({"batch_size": 2, "max_length": 2}, UsageError, "of which 2 are special ones; expected at least 3"),
        ({"batch_size": 2, "max_length": 8}, DataError, "no padding token"),
    ],
)
def test_batches_that_cannot_be_made(options, error, message):
    with pytest.raises(error, match=message):
        make_batches(samples_of("good", "bad film"), make_tokenizer(pad_token=None), **options)


def model_with(padding_idx):
    model = torch.nn.Module()
    model.positions = torch.nn.Embedding(66, 2, padding_idx=padding_idx)
    model.words = torch.nn.Embedding(66, 2, padding_idx=5)
    model.get_input_embeddings = lambda: model.words
    return model


@pytest.mark.parametrize(
    ("tokens", "positions", "pad", "model", "asked", "expected"),
    [
        (512, 512, 0, None, None, 128),
        (512, 512, 0, None, 512, 512),
        (64, 512, 0, None, None, 64),
        (10**30, 66, 1, None, None, 64),
        (10**30, 66, 0, model_with(None), None, 66),
        (10**30, 66, 1, model_with(1), None, 64),
        (10**30, None, 0, None, 4096, 4096),
        (10**30, -1, None, None, None, 128),
        (64, 66, 1, None, 65, "expected 1 to 64"),
        (512, 66, 1, model_with(1), 65, "expected 1 to 64"),
        (512, 512, 0, None, 0, "expected 1 to 512"),
    ],
)
def test_usable_length(*, tokens, positions, pad, model, asked, expected):
    tokenizer = SimpleNamespace(model_max_length=tokens)
    config = SimpleNamespace(max_position_embeddings=positions, pad_token_id=pad)
    if isinstance(expected, int):
        assert usable_length(tokenizer, config, asked, model) == expected
    else:
        with pytest.raises(UsageError, match=expected):
            usable_length(tokenizer, config, asked, model)
