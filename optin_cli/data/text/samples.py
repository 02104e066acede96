"""Samples of text: the texts and labels of chosen columns, selected independently of row order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from optin_cli.artifacts.base import Options
from optin_cli.data.sampling import content_hash, digest_of, rank_rows
from optin_cli.data.spec import DataSpec
from optin_cli.data.text.answers import Answers, read_answers
from optin_cli.data.text.label_columns import (
    Label,
    Labels,
    listed,
    place_of,
    read_columns,
    read_label_lists,
    read_labels,
)
from optin_cli.data.text.tables import Table, read_table
from optin_cli.errors import DataError
from optin_cli.tasks.schema import Kind, Task

T = TypeVar("T")
Words = tuple[str, ...]
LISTED: frozenset[Kind] = frozenset({"multi-label", "token-classification"})
"""Kinds of task whose samples have several labels each."""
COLUMN_SETS: tuple[tuple[str, ...], ...] = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("question1", "question2"),
    ("question", "context"),
    ("sentence",),
    ("text",),
)
WORD_COLUMNS = ("tokens", "words")
LABEL_COLUMN = "label"


@dataclass(frozen=True)
class Targets:
    """What predictions are measured by, of one form at most."""

    labels: list[Label] | None = None
    answers: list[Answers] | None = None
    lists: list[Labels] | None = None

    @property
    def known(self) -> list[Any] | None:
        """Whichever there is."""
        return next((found for found in (self.labels, self.answers, self.lists) if found is not None), None)


@dataclass(frozen=True)
class Samples:
    """Texts, one or two per sample, and their labels, in an order that depends on content and seed only.

    name: task, file or folder name, for display. split: the split read, "all" for a single file.
    labels: one per sample as in the data, or None where it has none; all int, all float or all str.
    label_names: names of integer labels 0, 1, … where the data declares them.
    sha256: over texts and labels, independent of row order. total: rows before limiting.
    answers: of question answering, in place of labels; every accepted one, none where there is no answer.
    label_lists: several labels a sample, in place of labels: classes that a text has, or one for each word.
    words: of samples that come as words; their texts are these words with spaces between.
    own: whether the columns are others than the task's, so that numbers are not in the order of the task's classes.
    columns: that hold the texts, and last the labels where those are read.
    """

    name: str
    split: str
    texts: list[tuple[str, ...]]
    labels: list[Label] | None
    label_names: tuple[str, ...] | None
    sha256: str
    total: int
    answers: list[Answers] | None = None
    label_lists: list[Labels] | None = None
    words: list[Words] | None = None
    own: bool = False
    columns: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def labelled(self) -> bool:
        """Whether there is anything to measure predictions by."""
        return any(found is not None for found in (self.labels, self.answers, self.label_lists))

    @property
    def constants(self) -> Options:
        """What an evaluation records of how the samples were read: nothing."""
        return {}

    def head(self, count: int) -> Samples:
        """The first `count` of them; name and hash stay those of the whole."""
        return replace(
            self,
            texts=self.texts[:count],
            labels=None if self.labels is None else self.labels[:count],
            answers=None if self.answers is None else self.answers[:count],
            label_lists=None if self.label_lists is None else self.label_lists[:count],
            words=None if self.words is None else self.words[:count],
        )


def load_samples(spec: DataSpec, *, alone: bool = False, classes: Sequence[str] | None = None) -> Samples:
    """Read and select samples of text.

    Calibration data whose texts are read one at a time has one unlabelled sample per text. Unless labels are wanted,
    calibration does not look at them.
    alone: whether the model reads texts one at a time, where no task says. classes: of the model, which may be columns
    of 0 and 1 in the data of a multi-label task.

    Raises UsageError: no data is named, or two names contradict each other. DataError: the data is missing, malformed,
    empty, or lacks the columns.
    """
    task, path = spec.resolve("text")
    table = read_table(path, task, spec.role)
    if not table.rows:
        raise DataError(f"{table.name} has no rows.", hint="Pass a file with at least one row.")
    chosen = text_columns(table, task, spec.columns)
    named = _label_column(table, task, spec.label_column)
    words = _read_words(table, task, chosen)
    texts = [(" ".join(each),) for each in words] if words is not None else read_texts(table, chosen)
    targets = Targets()
    if spec.role == "evaluation" or spec.labelled:
        targets = _read_targets(table, task, named, spec, classes)
    elif words is None and (alone if task is None else task.each_alone):
        texts = [(text,) for row in texts for text in row]
    if words is not None and task is not None and task.kind == "token-classification" and targets.lists is not None:
        _require_same_count(table.name, words, targets.lists)
    digests = [digest_of(t) for t in (texts if words is None else words)]
    order = rank_rows(digests, targets.known, spec.seed)[: spec.limit]

    def selected(items: list[T] | None) -> list[T] | None:
        return None if items is None else [items[i] for i in order]

    return Samples(
        name=table.name,
        split=table.split,
        texts=[texts[i] for i in order],
        labels=selected(targets.labels),
        label_names=None if named is None else table.class_names.get(named),
        sha256=content_hash([digests[i] for i in order], selected(targets.known)),
        total=len(texts),
        answers=selected(targets.answers),
        label_lists=selected(targets.lists),
        words=selected(words),
        own=task is not None and not {*task.text_columns, *task.label_columns} <= {*table.columns},
        columns=(*chosen, named) if named is not None and targets.known is not None else tuple(chosen),
    )


def _read_targets(
    table: Table, task: Task | None, named: str | None, spec: DataSpec, classes: Sequence[str] | None
) -> Targets:
    """Labels in the form that the task has; without a task, one a row."""
    kind = None if task is None else task.kind
    if named is None:
        columns = _class_columns(table, classes or ()) if kind == "multi-label" else None
        return Targets(lists=None if columns is None else read_columns(table, columns))
    if task is not None and kind == "question-answering":
        return Targets(answers=read_answers(table, named, task, spec.role))
    if kind in LISTED or (kind == "regression" and any(isinstance(listed(row.get(named)), list) for row in table.rows)):
        lists = read_label_lists(table, named, spec.role, spaced=kind == "token-classification")
        return Targets(lists=lists)
    return Targets(labels=read_labels(table, named, spec.role))


def _class_columns(table: Table, classes: Sequence[str]) -> list[str] | None:
    """The columns called as the classes are, in their order; None if one lacks."""
    by_name = {column.casefold(): column for column in table.columns}
    found = [by_name.get(name.casefold()) for name in classes]
    return [c for c in found if c is not None] if found and None not in found else None


def read_texts(table: Table, columns: Sequence[str]) -> list[tuple[str, ...]]:
    """The texts of every row (DataError where one is no text, naming the row)."""
    return [tuple(_text(row.get(c), place_of(table, n, c)) for c in columns) for n, row in enumerate(table.rows, 1)]


def _read_words(table: Table, task: Task | None, columns: Sequence[str]) -> list[Words] | None:
    """Words of every row, where one column holds lists of them or the task asks for words; None otherwise."""
    column, first = columns[0], table.rows[0].get(columns[0])
    wanted = task is not None and task.kind == "token-classification"
    spelled = column in WORD_COLUMNS and isinstance(listed(first), list)
    if len(columns) != 1 or not (wanted or spelled or isinstance(first, list)):
        return None
    return [_words(row.get(column), place_of(table, n, column)) for n, row in enumerate(table.rows, start=1)]


def _require_same_count(name: str, words: Sequence[Words], tags: Sequence[Labels]) -> None:
    for number, (mine, theirs) in enumerate(zip(words, tags, strict=True), start=1):
        if len(mine) != len(theirs):
            raise DataError(
                f"Row {number} of {name} has {len(mine)} words but {len(theirs)} labels.",
                hint="Give every word a label, -100 for one that does not count.",
            )


def text_columns(table: Table, task: Task | None, asked: Sequence[str] | None) -> tuple[str, ...]:
    """The columns that hold the text: those asked for, the task's, or the likeliest (DataError if it has none)."""
    if asked is not None:
        wanted: tuple[str, ...] | None = tuple(asked)
    elif task is not None and table.nameless and len(task.text_columns) <= 1:
        wanted = table.columns
    elif (
        task is not None
        and task.text_columns
        and (not task.labels_itself or set(task.text_columns) <= set(table.columns))
    ):
        wanted = task.text_columns
    else:
        wanted = next((s for s in _column_sets(task) if set(s) <= set(table.columns)), None)
    found = f"it has columns {', '.join(table.columns) or '(none)'}"
    if wanted is None:
        raise DataError(
            f"Which columns of {table.name} hold the text is not clear: {found}.",
            hint="Name one or two of them with --text-columns.",
        )
    missing = [c for c in wanted if c not in table.columns]
    if missing:
        raise DataError(
            f"{table.name} has no column {missing[0]!r}: {found}.",
            hint="Name the text columns with --text-columns.",
        )
    return wanted


def _label_column(table: Table, task: Task | None, asked: str | None) -> str | None:
    if asked is not None and asked not in table.columns:
        raise DataError(
            f"{table.name} has no label column {asked!r}: it has columns {', '.join(table.columns)}.",
            hint="Name the label column with --label-column, or leave it out for data without labels.",
        )
    usual = (LABEL_COLUMN,) if task is None else (*task.label_columns, *task.other_label_columns)
    return asked or next((column for column in usual if column in table.columns), None)


def _column_sets(task: Task | None) -> list[tuple[str, ...]]:
    """What text columns may be called, likeliest first."""
    words = [(column,) for column in WORD_COLUMNS]
    first = task is not None and task.kind == "token-classification"
    return [*words, *COLUMN_SETS] if first else [*COLUMN_SETS, *words]


def _text(value: object, place: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{place} expected text, found {value!r:.60} ({type(value).__name__}).")
    # JSON can spell half of a surrogate pair, which is no character and which tokenizers refuse.
    if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
        raise DataError(f"{place} the text holds half of a surrogate pair, which is no character.")
    return value


def _words(value: object, place: str) -> Words:
    """The words of a list, which may be written as text, or of a text that spaces part."""
    value = listed(value)
    if isinstance(value, str):
        return tuple(_text(value, place).split())
    if not isinstance(value, (list, tuple)):
        raise DataError(f"{place} expected a list of words, found {value!r:.60} ({type(value).__name__}).")
    return tuple(_text(word, place) for word in value)
