"""Samples of text: the texts and labels of chosen columns, selected independently of row order."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from optin_cli.artifacts.base import Options
from optin_cli.data.sampling import content_hash, digest_of, rank_rows
from optin_cli.data.spec import DataSpec
from optin_cli.data.text.answers import Answers, read_answers
from optin_cli.data.text.tables import Table, read_table
from optin_cli.errors import DataError
from optin_cli.tasks.schema import Role, Task

Label = float | int | str
COLUMN_SETS: tuple[tuple[str, ...], ...] = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("question1", "question2"),
    ("question", "context"),
    ("sentence",),
    ("text",),
)
LABEL_COLUMN = "label"
UNLABELLED = -1


@dataclass(frozen=True)
class Samples:
    """Texts, one or two per sample, and their labels, in an order that depends on content and seed only.

    name: task, file or folder name, for display. split: the split read, "all" for a single file.
    labels: one per sample as in the data, or None where it has none; all int, all float or all str.
    label_names: names of integer labels 0, 1, … where the data declares them.
    sha256: over texts and labels, independent of row order. total: rows before limiting.
    answers: of question answering, in place of labels; every accepted one, none where there is no answer.
    """

    name: str
    split: str
    texts: list[tuple[str, ...]]
    labels: list[Label] | None
    label_names: tuple[str, ...] | None
    sha256: str
    total: int
    answers: list[Answers] | None = None

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def labelled(self) -> bool:
        """Whether there is anything to measure predictions by."""
        return self.labels is not None or self.answers is not None

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
        )


def load_samples(spec: DataSpec, *, alone: bool = False) -> Samples:
    """Read and select samples of text.

    Calibration data whose texts are read one at a time has one unlabelled sample per text, unless labels are wanted.
    alone: whether the model reads texts one at a time, where no task says.

    Raises UsageError: no data is named, or two names contradict each other. DataError: the data is missing, malformed,
    empty, or lacks the columns.
    """
    task, path = spec.resolve("text")
    table = read_table(path, task, spec.role)
    if not table.rows:
        raise DataError(f"{table.name} has no rows.", hint="Pass a file with at least one row.")
    chosen = _text_columns(table, task, spec.columns)
    named = _label_column(table, task, spec.label_column)
    texts = [tuple(_text(row.get(c), n, table.name, c) for c in chosen) for n, row in enumerate(table.rows, start=1)]
    labels: list[Label] | None = None
    answers: list[Answers] | None = None
    if spec.role == "calibration" and not spec.labelled and (alone if task is None else task.each_alone):
        texts = [(text,) for row in texts for text in row]
    elif named is not None and task is not None and task.kind == "question-answering":
        answers = read_answers(table, named, task, spec.role)
    elif named is not None:
        labels = _labels(table, named, spec.role)
    digests = [digest_of(t) for t in texts]
    targets = answers if labels is None else labels
    order = rank_rows(digests, targets, spec.seed)[: spec.limit]
    return Samples(
        name=table.name,
        split=table.split,
        texts=[texts[i] for i in order],
        labels=None if labels is None else [labels[i] for i in order],
        label_names=None if named is None else table.class_names.get(named),
        sha256=content_hash([digests[i] for i in order], None if targets is None else [targets[i] for i in order]),
        total=len(texts),
        answers=None if answers is None else [answers[i] for i in order],
    )


def _text_columns(table: Table, task: Task | None, asked: Sequence[str] | None) -> tuple[str, ...]:
    if asked is not None:
        wanted: tuple[str, ...] | None = tuple(asked)
    elif task is not None and table.nameless and len(task.text_columns) == 1:
        wanted = table.columns
    elif task is not None and not (task.labels_itself and not set(task.text_columns) <= set(table.columns)):
        wanted = task.text_columns
    else:
        wanted = next((s for s in COLUMN_SETS if set(s) <= set(table.columns)), None)
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
    wanted = asked or (task.label_column if task else LABEL_COLUMN)
    return wanted if wanted in table.columns else None


def _text(value: object, number: int, name: str, column: str) -> str:
    place = f"Row {number} of {name}, column {column!r}:"
    if not isinstance(value, str):
        raise DataError(f"{place} expected text, found {value!r:.60} ({type(value).__name__}).")
    # JSON can spell half of a surrogate pair, which is no character and which tokenizers refuse.
    if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
        raise DataError(f"{place} the text holds half of a surrogate pair, which is no character.")
    return value


def _labels(table: Table, column: str, role: Role) -> list[Label] | None:
    """Labels of one type, or None where rows have none: null, an empty field, or -1.

    Partly labelled data counts as unlabelled for calibration and is refused for evaluation.
    """
    labels = _parsed([_label(row.get(column), n, table.name, column) for n, row in enumerate(table.rows, 1)])
    bare = [n for n, label in enumerate(labels, start=1) if label is None or label == UNLABELLED]
    # Among fractions -1.0 is a value like others; a column of nothing else is how GLUE hides labels.
    if any(isinstance(label, float) for label in labels) and len(bare) < len(labels):
        bare = [n for n in bare if labels[n - 1] is None]
    if bare and len(bare) < len(labels) and role == "evaluation":
        raise DataError(
            f"{table.name} is labelled in part: row {bare[0]} is the first of {len(bare)} with column "
            f"{column!r} empty or -1.",
            hint="Remove those rows, or name another column with --label-column.",
        )
    known: list[Label] = [label for label in labels if label is not None]
    if bare:
        return None
    texts = [isinstance(label, str) for label in known]
    if any(texts) and not all(texts):
        raise DataError(
            f"Column {column!r} of {table.name} mixes text and numbers: row {texts.index(True) + 1} is text, "
            f"row {texts.index(False) + 1} is a number."
        )
    return [float(x) for x in known] if any(isinstance(x, float) for x in known) else known


def _label(value: object, number: int, name: str, column: str) -> Label | None:
    if value is None or value == "":
        return None
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, (int, str)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise DataError(f"Row {number} of {name}, column {column!r}: expected a number or a name, found {value!r:.60}.")


def _parsed(labels: list[Label | None]) -> list[Label | None]:
    """Labels written as text, as all are in .csv and .tsv files, as numbers where every one is a number."""
    texts = [label for label in labels if isinstance(label, str)]
    if not texts or len(texts) < sum(label is not None for label in labels):
        return labels
    if all(re.fullmatch(r"[+-]?\d+", t) for t in texts):
        return [None if label is None else int(label) for label in labels]
    if all(re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", t) for t in texts):
        return [None if label is None else float(label) for label in labels]
    return labels
