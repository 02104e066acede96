"""Running text is cut into windows of one length; which tokens count, and what cannot be cut."""

import pytest
import torch
from helpers.models import tiny_tokenizer
from helpers.running import write_rows

from optin_cli.data.spec import DataSpec
from optin_cli.data.text import running
from optin_cli.data.text.running import (
    NOT_COUNTED,
    Cutting,
    Stream,
    chat_text,
    cut_documents,
    cut_stream,
    load_running,
    surroundings,
    window_batches,
)
from optin_cli.errors import CheckpointError, DataError, UsageError
from optin_cli.tasks.registry import load_task

NO = NOT_COUNTED
WHOLE = Cutting(6, None, True, None, 0)
TEMPLATE = "{% for m in messages %}{{ m.role[0] }} {{ m.content }} {% endfor %}"


def plain_tokenizer(**options):
    """A tokenizer that puts nothing before or behind a text."""
    from tokenizers import processors

    made = tiny_tokenizer(**options)
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    return made


def ids_of(windows):
    return [window.ids.tolist() for window in windows]


def labels_of(windows):
    return [window.labels.tolist() for window in windows]


@pytest.mark.parametrize(
    ("stride", "partial", "ids", "labels"),
    [
        (4, True, [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]], [[NO, 1, 2, 3], [NO, 5, 6, 7], [NO, 9]]),
        (4, False, [[0, 1, 2, 3], [4, 5, 6, 7]], [[NO, 1, 2, 3], [NO, 5, 6, 7]]),
        (
            3,
            True,
            [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]],
            [[NO, 1, 2, 3], [NO, 4, 5, 6], [NO, 7, 8, 9]],
        ),
        (
            2,
            True,
            [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7], [6, 7, 8, 9]],
            [[NO, 1, 2, 3], [NO, NO, 4, 5], [NO, NO, 6, 7], [NO, NO, 8, 9]],
        ),
    ],
)
def test_each_token_counts_once_and_only_behind_another(stride, partial, ids, labels):
    stream = Stream(torch.arange(10), torch.ones(10, dtype=torch.bool))
    windows = cut_stream(stream, [], 4, stride, partial=partial)
    assert (ids_of(windows), labels_of(windows)) == (ids, labels)
    behind = cut_stream(stream, [77], 4, stride, partial=partial)
    assert ids_of(behind) == [[77, *row] for row in ids] and labels_of(behind) == [[NO, *row] for row in labels]


def test_nothing_is_predicted_across_documents():
    documents = ["a b c", "d e"]
    (window,), total = cut_documents(documents, tiny_tokenizer(), Cutting(20, None, True, None, 0), "texts")
    orders = {
        (2, 5, 6, 7, 3, 8, 9): [NO, NO, 6, 7, NO, NO, 9],
        (2, 8, 9, 3, 5, 6, 7): [NO, NO, 9, NO, NO, 6, 7],
    }
    assert total == 1 and window.labels.tolist() == orders[tuple(window.ids.tolist())]
    back, _ = cut_documents(documents[::-1], tiny_tokenizer(), Cutting(20, None, True, None, 0), "texts")
    assert back[0].ids.equal(window.ids), "the order of the file does not matter"


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, ([], [])), ({"eos_token": "[SEP]"}, ([], [3]))],
)
def test_an_end_token_parts_documents_where_there_is_one(options, expected):
    tokenizer = plain_tokenizer(**options)
    assert surroundings(tokenizer) == expected
    (window,), _ = cut_documents(["a b", "a b"], tokenizer, WHOLE, "texts")
    parted = expected[1]
    assert window.ids.tolist() == [5, 6, *parted, 5, 6]
    assert window.labels.tolist() == [NO, 6, *[NO] * len(parted), NO, 6]


def test_a_limit_takes_some_windows_by_content(monkeypatch):
    text = " ".join("abcdefghijklmnopqrst" * 20)
    cutting = Cutting(10, None, False, 5, 3)
    some, total = cut_documents([text], plain_tokenizer(), cutting, "text")
    every, _ = cut_documents([text], plain_tokenizer(), Cutting(10, None, False, None, 3), "text")
    assert (len(some), total, len(every)) == (5, 40, 40)
    assert {*map(tuple, ids_of(some))} <= {*map(tuple, ids_of(every))}
    other, _ = cut_documents([text], plain_tokenizer(), Cutting(10, None, False, 5, 4), "text")
    assert len(other) == 5
    monkeypatch.setattr(running, "CHUNK", 1)
    seen = []
    tokenizer = plain_tokenizer()
    monkeypatch.setattr(running, "chat_text", lambda document, _: seen.append(document) or "a b c d e f g h i j")
    cut_documents([[{"role": "user", "content": str(n)}] for n in range(50)], tokenizer, cutting, "chats")
    assert len(seen) == 5, "no more documents are tokenised than the windows take"


def test_batches_hold_windows_of_one_length_without_padding():
    text = " ".join("abcdefghijklmnopqrst" * 2)
    windows, _ = cut_documents([text], plain_tokenizer(pad_token=None), Cutting(7, None, True, None, 0), "text")
    batches = window_batches(windows, batch_size=2, labelled=True)
    assert [tuple(batch.inputs["input_ids"].shape) for batch in batches] == [(1, 5), (2, 7), (2, 7), (1, 7)]
    for batch in batches:
        assert bool(batch.inputs["attention_mask"].all())
        for row, ids, labels in zip(batch.rows, batch.inputs["input_ids"], batch.labels, strict=True):
            assert ids.equal(windows[row].ids) and labels.equal(windows[row].labels)
    keys = [key for batch in batches for key in batch.keys]
    assert len({*keys}) == len(windows)
    assert window_batches(windows, batch_size=2, labelled=False)[0].labels is None


def read(path, *, task=None, length=6, tokenizer=None, **options):
    spec = DataSpec(path=path, known=task, role="evaluation", **options)
    return load_running(spec, task, path, tokenizer or plain_tokenizer(), length)


def test_a_text_file_is_a_document_and_so_is_a_row(tmp_path):
    lines = " \n = a = \n \n b c \n d e\n"
    (tmp_path / "t.txt").write_text(lines)
    assert read(tmp_path / "t.txt").documents == [lines]
    rows = write_rows(tmp_path / "r.jsonl", [{"text": "a b"}, {"text": "c d e"}])
    assert sorted(read(rows).documents) == ["a b", "c d e"]
    pairs = write_rows(tmp_path / "p.jsonl", [{"sentence1": "a", "sentence2": "b"}])
    assert read(pairs).documents == ["a\nb"]


def test_lines_of_wikitext_are_joined_as_its_rows_are(tmp_path):
    """The rows of the dataset are lines with their line feed, or empty; "\\n\\n".join of them is what is published."""
    (tmp_path / "wiki.test.tokens").write_text(" \n = a = \n \n b c \n")
    rows = write_rows(tmp_path / "r.jsonl", [{"text": t} for t in ("", " = a = \n", "", " b c \n")])
    expected = ["\n\n = a = \n\n\n\n\n b c \n"]
    task = load_task("wikitext2")
    for path in (tmp_path / "wiki.test.tokens", rows):
        assert read(path, task=task).documents == expected
    (tmp_path / "folder").mkdir()
    (tmp_path / "wiki.test.tokens").rename(tmp_path / "folder" / "wiki.test.tokens")
    assert read(tmp_path / "folder", task=task).split == "test"


def test_conversations_are_written_by_the_chat_template(tmp_path):
    chat = [{"role": "a", "content": "b c"}, {"role": "d", "content": "e"}]
    path = write_rows(tmp_path / "c.jsonl", [{"messages": chat}, {"messages": chat}])
    tokenizer = plain_tokenizer(chat_template=TEMPLATE, eos_token="[SEP]")
    assert chat_text(chat, tokenizer) == "a b c d e "
    assert ids_of(read(path, length=20, tokenizer=tokenizer).windows) == [[*range(5, 10), *range(5, 10)]]
    with pytest.raises(CheckpointError, match="no chat template"):
        read(path)
    refusing = plain_tokenizer(chat_template="{{ raise_exception('roles must alternate') }}")
    with pytest.raises(DataError, match="roles must alternate"):
        read(path, tokenizer=refusing)


@pytest.mark.parametrize(
    ("rows", "options", "error", "message"),
    [
        ([{"text": "  "}], {}, DataError, "holds no text"),
        ([{"messages": "hello"}], {}, DataError, "Row 1 of d.jsonl, column 'messages': expected a list of messages"),
        ([{"messages": [{"content": "a"}]}], {}, DataError, "expected messages with role and content"),
        ([{"text": "a b c"}], {"length": 1}, UsageError, "at least 2 tokens"),
        ([{"text": "a b c"}], {"stride": 9}, UsageError, "1 to 6 from one to the next"),
        ([{"text": "a"}], {}, DataError, "d.jsonl holds 1 tokens, fewer than a window of 6"),
    ],
)
def test_what_cannot_be_cut_is_refused(tmp_path, rows, options, error, message):
    with pytest.raises(error) as caught:
        read(write_rows(tmp_path / "d.jsonl", rows), **options)
    assert message in caught.value.message


def test_calibration_takes_whole_windows_alone(tmp_path):
    (tmp_path / "t.txt").write_text("a b c d e f g h")
    spec = DataSpec(path=tmp_path / "t.txt").calibrating(4, 0)
    found = load_running(spec, None, tmp_path / "t.txt", plain_tokenizer(), 3)
    assert [len(window.ids) for window in found.windows] == [3, 3] and len(found) == 2
    assert len(found.head(1)) == 1
    with pytest.raises(DataError, match="holds 8 tokens, fewer than a window of 20") as caught:
        load_running(spec, None, tmp_path / "t.txt", plain_tokenizer(), 20)
    assert "--seq-len 8" in caught.value.hint


def test_another_vocabulary_gets_windows_of_its_own(tmp_path):
    (tmp_path / "t.txt").write_text("a b c d e f")
    found = read(tmp_path / "t.txt", length=6)
    assert found.windows_for(plain_tokenizer()) is found.windows
    assert (
        ids_of(found.windows_for(tiny_tokenizer(additional_special_tokens=["[NEW]"])))
        == [
            [2, *range(5, 10)],
            [2, 10],
        ][:1]
    )
