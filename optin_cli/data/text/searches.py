"""Queries and the documents that they are to find.

Retrieval ranks a whole corpus, in a folder laid out as BEIR's are: `corpus.jsonl` with _id, title and text,
`queries.jsonl` with _id and text, and `qrels/test.tsv` with query-id, corpus-id and score. Reranking ranks candidates
of each query, in a file of rows with query, positive and negative: a text, and two lists of texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from optin_cli.data.sampling import content_hash, digest_of, rank_rows
from optin_cli.data.spec import DataSpec
from optin_cli.data.text.formats import read_text_file
from optin_cli.data.text.samples import Samples
from optin_cli.data.text.tables import Table, read_table
from optin_cli.errors import DataError
from optin_cli.tasks.schema import Task

CORPUS, QUERIES, JUDGEMENTS = "corpus.jsonl", "queries.jsonl", "qrels"
ID, TITLE, TEXT = "_id", "title", "text"
QUERY_ID, DOCUMENT_ID, SCORE = "query-id", "corpus-id", "score"
QUERY, POSITIVE, NEGATIVE = "query", "positive", "negative"
LAYOUT = f"Expected {CORPUS}, {QUERIES} and {JUDGEMENTS}/SPLIT.tsv in it, as in BEIR's folders."


@dataclass(frozen=True)
class Searches(Samples):
    """Queries in place of texts, and documents.

    relevant: of each query, how relevant documents are, by their numbers; others are not. candidates: numbers of the
    documents that each query ranks; None where every query ranks all.
    """

    documents: list[str] = field(default_factory=list)
    relevant: list[dict[int, int]] = field(default_factory=list)
    candidates: list[list[int]] | None = None

    @property
    def labelled(self) -> bool:
        """True: every query has a relevant document."""
        return True

    def head(self, count: int) -> Searches:
        """The first `count` queries, with all documents."""
        return replace(
            self,
            texts=self.texts[:count],
            relevant=self.relevant[:count],
            candidates=None if self.candidates is None else self.candidates[:count],
        )


@dataclass(frozen=True)
class _Found:
    """What a reader makes of a path: queries, documents, and of each query what `Searches` says."""

    name: str
    split: str
    queries: list[str]
    documents: list[str]
    relevant: list[dict[int, int]]
    candidates: list[list[int]] | None = None


def load_searches(spec: DataSpec, task: Task, path: Path | None) -> Samples:
    """Read and select queries with all documents; to calibrate, queries and documents as texts without labels.

    Queries without a relevant document are left out, as BEIR does.

    Raises DataError: the data is missing, malformed, or of another layout.
    """
    if path is None:
        raise DataError(f"The task {task.name} has no data of its own.", hint=f"Pass it with --data PATH. {LAYOUT}")
    corpus = task.kind == "retrieval"
    found = _read_corpus(path, getattr(task.splits, spec.role)) if corpus else _read_rows(path, task, spec)
    if spec.role == "calibration":
        return _as_texts(found, spec)
    asked = [n for n, grades in enumerate(found.relevant) if any(grades.values())]
    if not asked:
        raise DataError(f"{found.name} has no query with a relevant document.", hint="Give one a score above 0.")
    digests = [digest_of(found.queries[n]) for n in asked]
    targets = [sorted((digest_of(found.documents[d]), grade) for d, grade in found.relevant[n].items()) for n in asked]
    order = rank_rows(digests, targets, spec.seed)[: spec.limit]
    chosen = [asked[i] for i in order]
    contents = [digest_of([content_hash([*map(digest_of, found.documents)], None), digests[i]]) for i in order]
    return Searches(
        name=found.name,
        split=found.split,
        texts=[(found.queries[n],) for n in chosen],
        labels=None,
        label_names=None,
        sha256=content_hash(contents, [targets[i] for i in order]),
        total=len(asked),
        documents=found.documents,
        relevant=[found.relevant[n] for n in chosen],
        candidates=None if found.candidates is None else [found.candidates[n] for n in chosen],
    )


def _as_texts(found: _Found, spec: DataSpec) -> Samples:
    texts = list(dict.fromkeys([*found.queries, *found.documents]))
    digests = [digest_of(text) for text in texts]
    order = rank_rows(digests, None, spec.seed)[: spec.limit]
    chosen: list[tuple[str, ...]] = [(texts[i],) for i in order]
    sha256 = content_hash([digests[i] for i in order], None)
    return Samples(found.name, found.split, chosen, None, None, sha256, len(texts))


def _read_corpus(folder: Path, split: str) -> _Found:
    """A folder of BEIR's layout."""
    judged = folder / JUDGEMENTS / f"{split}.tsv"
    for path in (folder / CORPUS, folder / QUERIES, judged):
        if not path.is_file():
            raise DataError(f"{folder} is no data for retrieval: {path.relative_to(folder)} is missing.", hint=LAYOUT)
    corpus, queries = _by_id(folder / CORPUS, (TITLE, TEXT)), _by_id(folder / QUERIES, (TEXT,))
    numbers = {name: number for number, name in enumerate(corpus)}
    relevant: dict[str, dict[int, int]] = {name: {} for name in queries}
    for line, row in enumerate(read_text_file(judged, judged.suffix), start=2):
        if not {QUERY_ID, DOCUMENT_ID, SCORE} <= row.keys():
            raise DataError(
                f"{judged} has columns {', '.join(row)}; expected {QUERY_ID}, {DOCUMENT_ID} and {SCORE}.",
                hint="Its first line names them.",
            )
        query, document = row[QUERY_ID], row[DOCUMENT_ID]
        for name, known, where in ((query, queries, QUERIES), (document, corpus, CORPUS)):
            if name not in known:
                raise DataError(f"{judged}, line {line}: {where} has no row with the {ID} {name!r}.")
        relevant[query][numbers[document]] = _grade(row[SCORE], f"{judged}, line {line}")
    return _Found(folder.resolve().name, split, [*queries.values()], [*corpus.values()], [*relevant.values()])


def _by_id(path: Path, columns: Sequence[str]) -> dict[str, str]:
    """Texts of the columns, joined by a space, by the rows' ids."""
    found: dict[str, str] = {}
    for number, row in enumerate(read_text_file(path, path.suffix), start=1):
        if ID not in row or TEXT not in row:
            raise DataError(f"Row {number} of {path} has columns {', '.join(row)}; expected {ID} and {TEXT}.")
        name = str(row[ID])
        if name in found:
            raise DataError(f"Row {number} of {path} has the {ID} {name!r}, which an earlier row has.")
        parts = [_text(row.get(c) or "", f"Row {number} of {path}, column {c!r}") for c in columns]
        found[name] = " ".join(filter(None, parts))
    return found


def _grade(value: object, place: str) -> int:
    try:
        return max(int(str(value)), 0)
    except ValueError as error:
        raise DataError(f"{place}: expected a whole number as score, found {value!r:.40}.") from error


def _read_rows(path: Path, task: Task, spec: DataSpec) -> _Found:
    """Rows of a query with texts that answer it and texts that do not."""
    table = read_table(path, task, spec.role)
    numbers: dict[str, int] = {}
    queries: list[str] = []
    relevant: list[dict[int, int]] = []
    candidates: list[list[int]] = []
    for number, row in enumerate(table.rows, start=1):
        queries.append(_text(row.get(QUERY), f"Row {number} of {table.name}, column {QUERY!r}"))
        sides = [_texts(row, column, number, table) for column in (POSITIVE, NEGATIVE)]
        good, bad = ([numbers.setdefault(text, len(numbers)) for text in texts] for texts in sides)
        candidates.append(list(dict.fromkeys([*good, *bad])))
        relevant.append(dict.fromkeys(good, 1))
    return _Found(table.name, table.split, queries, [*numbers], relevant, candidates)


def _texts(row: dict[str, Any], column: str, number: int, table: Table) -> list[str]:
    value = row.get(column)
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise DataError(
            f"Row {number} of {table.name}, column {column!r}: expected a list of texts, found {value!r:.60}.",
            hint=f"Rows of a reranking task have {QUERY}, {POSITIVE} and {NEGATIVE}.",
        )
    return [_text(text, f"Row {number} of {table.name}, column {column!r}") for text in value]


def _text(value: object, place: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{place}: expected text, found {value!r:.60}.")
    return value
