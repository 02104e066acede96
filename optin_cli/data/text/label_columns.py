"""Read columns of labels: one label a row, or several (of a text, or one for each of its words)."""

import ast
import json
import math
import re
from collections.abc import Sequence

from optin_cli.data.text.tables import Table
from optin_cli.errors import DataError
from optin_cli.tasks.schema import Role

Label = float | int | str
Labels = tuple[Label, ...]
UNLABELLED = -1


def read_labels(table: Table, column: str, role: Role) -> list[Label] | None:
    """Labels of one type, or None where rows have none: null, an empty field, or -1.

    Partly labelled data counts as unlabelled for calibration and is refused for evaluation (DataError).
    """
    labels = _parsed([_label(row.get(column), place_of(table, n, column)) for n, row in enumerate(table.rows, start=1)])
    bare = [n for n, label in enumerate(labels, start=1) if label is None or label == UNLABELLED]
    # Among fractions -1.0 is a value like others; a column of nothing else is how GLUE hides labels.
    if any(isinstance(label, float) for label in labels) and len(bare) < len(labels):
        bare = [n for n in bare if labels[n - 1] is None]
    if bare and len(bare) < len(labels):
        _refuse_part(table, column, role, bare, "empty or -1")
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


def read_label_lists(table: Table, column: str, role: Role, *, spaced: bool = False) -> list[Labels] | None:
    """Several labels a row, or None where rows have none: null or an empty field.

    A list may be written as text, as in .csv files: "['a', 'b']". Other text is one label or, where labels are
    `spaced`, as many as it has words. Partly labelled data is treated as by `read_labels`.
    """
    found = [
        _label_list(row.get(column), place_of(table, n, column), spaced=spaced)
        for n, row in enumerate(table.rows, start=1)
    ]
    bare = [n for n, labels in enumerate(found, start=1) if labels is None]
    if bare and len(bare) < len(found):
        _refuse_part(table, column, role, bare, "empty")
    known = [labels for labels in found if labels is not None]
    return known if len(known) == len(found) else None


def read_columns(table: Table, columns: Sequence[str]) -> list[Labels]:
    """One label a column, such as a 0 or 1 for each class (DataError, which names the row: no number)."""
    rows: list[Labels] = []
    for number, row in enumerate(table.rows, start=1):
        cells = _parsed([_label(row.get(column), place_of(table, number, column)) for column in columns])
        known = tuple(cell for cell in cells if cell is not None and not isinstance(cell, str))
        if len(known) < len(cells):
            raise DataError(
                f"Row {number} of {table.name}: expected a number in each of the columns {', '.join(columns)}."
            )
        rows.append(known)
    return rows


def place_of(table: Table, number: int, column: str) -> str:
    """The start of a message about one value."""
    return f"Row {number} of {table.name}, column {column!r}:"


def listed(value: object) -> object:
    """The list that a text spells as JSON or Python write it, else the value as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    for parse in (json.loads, ast.literal_eval):
        try:
            found = parse(value.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        return found if isinstance(found, list) else value
    return value


def _refuse_part(table: Table, column: str, role: Role, bare: Sequence[int], how: str) -> None:
    if role == "evaluation":
        raise DataError(
            f"{table.name} is labelled in part: row {bare[0]} is the first of {len(bare)} with column "
            f"{column!r} {how}.",
            hint="Remove those rows, or name another column with --label-column.",
        )


def _label_list(value: object, place: str, *, spaced: bool) -> Labels | None:
    value = listed(value)
    if value is None or value == "":
        return None
    if isinstance(value, str) and spaced:
        value = value.split()
    items = _parsed([_label(item, place) for item in (value if isinstance(value, (list, tuple)) else [value])])
    known = tuple(item for item in items if item is not None)
    if len(known) < len(items):
        raise DataError(f"{place} label {items.index(None) + 1} of {len(items)} is empty.")
    return known


def _label(value: object, place: str) -> Label | None:
    if value is None or value == "":
        return None
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, (int, str)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise DataError(f"{place} expected a number or a name, found {value!r:.60}.")


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
