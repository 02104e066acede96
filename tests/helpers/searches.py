"""Queries and documents in the layouts of retrieval and reranking."""

import json

from helpers.running import write_rows

DOCUMENTS = {"d1": ("good film", "a b c"), "d2": ("", "bad film d"), "d3": ("e", "f g h i"), "d4": ("", "j k l m n")}
QUERIES = {"q1": "good a", "q2": "f g", "q3": "bad", "q4": "nobody judged this"}
JUDGED = (("q1", "d1", 2), ("q1", "d2", 1), ("q2", "d3", 1), ("q3", "d1", 0), ("q3", "d2", 1), ("q4", "d4", 0))


def corpus_folder(folder, documents=DOCUMENTS, queries=QUERIES, judged=JUDGED):
    """A folder laid out as BEIR's are."""
    (folder / "qrels").mkdir(parents=True)
    write_rows(folder / "corpus.jsonl", [{"_id": i, "title": a, "text": b} for i, (a, b) in documents.items()])
    write_rows(folder / "queries.jsonl", [{"_id": i, "text": text} for i, text in queries.items()])
    lines = ["query-id\tcorpus-id\tscore", *("\t".join(map(str, row)) for row in judged)]
    (folder / "qrels" / "test.tsv").write_text("\n".join(lines) + "\n")
    return folder


def candidates_file(path):
    """Rows of queries with texts that answer them and texts that do not."""
    rows = [
        {"query": "good a", "positive": ["good film a b c", "bad film d"], "negative": ["j k l m n", "e f g h i"]},
        {"query": "f g", "positive": "e f g h i", "negative": ["a b", "c"]},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
