"""Text files of every format hold the same samples; faulty ones are refused by place."""

import json

import pytest
from helpers.datasets import PAIR, as_pairs, load_texts
from helpers.running import write_rows

from optin_cli.errors import DataError
from optin_cli.tasks.registry import load_task


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
    samples = load_texts(path)
    assert as_pairs(samples) == [(("bad film",), 0), (("good film",), 1)]
    assert (samples.name, samples.split, samples.total) == (name, "all", 2)
    assert samples.sha256 == load_texts(write_rows(tmp_path / "same.jsonl", PAIR)).sha256


def test_plain_text_is_one_sample_a_line(tmp_path):
    path = tmp_path / "d.txt"
    path.write_text("good film\n\n  \n2020-01-01\nNA\n", encoding="utf-8")
    samples = load_texts(path)
    assert as_pairs(samples) == [(("2020-01-01",), None), (("NA",), None), (("good film",), None)]
    assert samples.labels is None
    assert load_texts(path, task=load_task("sst2")).texts == samples.texts


def test_tab_separated_quotes_are_ordinary_characters(tmp_path):
    path = tmp_path / "d.tsv"
    path.write_text('text\tlabel\n"good\t1\n', encoding="utf-8")
    assert as_pairs(load_texts(path)) == [(('"good',), 1)]


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
        load_texts(path)
