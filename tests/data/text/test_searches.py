"""Retrieval data: BEIR's layout, candidates in rows, and what is wrong with them."""

import pytest
from helpers.running import write_rows
from helpers.searches import JUDGED, QUERIES, candidates_file, corpus_folder

from optin_cli.data.spec import DataSpec
from optin_cli.data.text.searches import load_searches
from optin_cli.errors import DataError
from optin_cli.tasks.registry import load_task

RETRIEVAL, RERANKING = load_task("retrieval"), load_task("reranking")


def read(path, task=RETRIEVAL, **options):
    return load_searches(DataSpec(path=path, known=task, **{"role": "evaluation", **options}), task, path)


def by_query(searches):
    ranked = searches.candidates or [[*range(len(searches.documents))]] * len(searches)
    return {
        query: ([searches.documents[n] for n in numbers], {searches.documents[n]: g for n, g in grades.items()})
        for (query,), numbers, grades in zip(searches.texts, ranked, searches.relevant, strict=True)
    }


def test_a_corpus_is_read_with_its_judgements(tmp_path):
    searches = read(corpus_folder(tmp_path / "data"))
    documents = ["good film a b c", "bad film d", "e f g h i", "j k l m n"]
    assert by_query(searches) == {
        "good a": (documents, {"good film a b c": 2, "bad film d": 1}),
        "f g": (documents, {"e f g h i": 1}),
        "bad": (documents, {"good film a b c": 0, "bad film d": 1}),
    }
    assert (searches.name, searches.split, searches.total, searches.labelled) == ("data", "test", 3, True)


def test_order_of_rows_changes_nothing(tmp_path):
    one = read(corpus_folder(tmp_path / "one" / "data"))
    two = read(corpus_folder(tmp_path / "two" / "data", queries=dict(reversed(QUERIES.items())), judged=JUDGED[::-1]))
    assert one == two
    assert read(tmp_path / "one" / "data", limit=2).texts == one.texts[:2] == one.head(2).texts
    other = corpus_folder(tmp_path / "three" / "data", judged=JUDGED[1:])
    assert read(other).sha256 != one.sha256


def test_candidates_are_read_from_rows(tmp_path):
    searches = read(candidates_file(tmp_path / "rows.jsonl"), RERANKING)
    assert by_query(searches) == {
        "good a": (
            ["good film a b c", "bad film d", "j k l m n", "e f g h i"],
            {"good film a b c": 1, "bad film d": 1},
        ),
        "f g": (["e f g h i", "a b", "c"], {"e f g h i": 1}),
    }


def test_calibration_takes_queries_and_documents_as_texts(tmp_path):
    folder = corpus_folder(tmp_path / "data")
    (folder / "qrels" / "train.tsv").write_text((folder / "qrels" / "test.tsv").read_text())
    samples = read(folder, role="calibration")
    assert len(samples) == 8 and samples.labels is None and ("good film a b c",) in samples.texts


ROW = "query-id\tcorpus-id\tscore\n"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("corpus.jsonl", None, r"corpus.jsonl is missing"),
        ("qrels/test.tsv", None, r"qrels.test.tsv is missing"),
        ("qrels/test.tsv", "q1\td1\t1\nq2\td2\t1\n", "expected query-id, corpus-id and score"),
        ("qrels/test.tsv", f"{ROW}q9\td1\t1\n", "line 2: queries.jsonl has no row with the _id 'q9'"),
        ("qrels/test.tsv", f"{ROW}q1\td9\t1\n", "line 2: corpus.jsonl has no row with the _id 'd9'"),
        ("qrels/test.tsv", f"{ROW}q1\td1\thigh\n", "expected a whole number as score, found 'high'"),
        ("qrels/test.tsv", f"{ROW}q1\td1\t0\n", "no query with a relevant document"),
        ("queries.jsonl", '{"_id": "q1"}', "has columns _id; expected _id and text"),
        ("corpus.jsonl", '{"_id": "d", "text": "a"}\n{"_id": "d", "text": "b"}', "which an earlier row has"),
    ],
)
def test_what_is_wrong_with_a_corpus_is_named(tmp_path, name, text, message):
    folder = corpus_folder(tmp_path / "data")
    (folder / name).unlink() if text is None else (folder / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read(folder)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"query": 1, "positive": [], "negative": []}, "column 'query': expected text, found 1"),
        ({"query": "a", "positive": ["b"]}, "column 'negative': expected a list of texts, found None"),
        ({"query": "a", "positive": [], "negative": ["b"]}, "no query with a relevant document"),
    ],
)
def test_what_is_wrong_with_candidates_is_named(tmp_path, row, message):
    with pytest.raises(DataError, match=message):
        read(write_rows(tmp_path / "rows.jsonl", [row]), RERANKING)


def test_local_data_is_asked_for():
    with pytest.raises(DataError, match="has no data of its own") as error:
        load_searches(DataSpec(known=RETRIEVAL), RETRIEVAL, None)
    assert "corpus.jsonl" in error.value.hint
