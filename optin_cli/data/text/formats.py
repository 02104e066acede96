"""Read text files (.jsonl, .json, .csv, .tsv, .txt, and CoNLL's columns) as rows.

These formats are read here rather than by `datasets`, whose readers turn dates and numbers in text into other
types, expand `*` and `[` in file names, leave files in the user's cache, and do not name the faulty line.
"""

import csv
import io
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from optin_cli.errors import DataError, first_line

Row = dict[str, Any]
PLAIN, TAGGED = ".txt", ".conll"
"""Endings of files with a text a line, and with a word a line."""
RUNNING = (".raw", ".tokens")
"""Endings of files of running text, as those of WikiText."""
DOCUMENT = "-DOCSTART-"
"""The word that stands for the start of a document in CoNLL's files."""


def read_text_file(path: Path, suffix: str) -> list[Row]:
    """Rows of a file, read as one with that ending, of `TEXT_READERS`.

    Raises DataError: unreadable or malformed, naming the line.
    """
    return TEXT_READERS[suffix](read_whole(path), path)


def read_whole(path: Path) -> str:
    """The text of a file (DataError: unreadable, or not UTF-8, naming the line)."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(f"{path} is not UTF-8 text (line {line}).", hint="Save it as UTF-8.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error


def _decoded(text: str, problem: str, hint: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{problem}: {first_line(error)}", hint=hint) from error


def _read_lines(text: str, path: Path) -> list[Row]:
    rows = []
    # Split at line feeds only: str.splitlines would also cut inside JSON strings, at U+2028 for one.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            problem = f"{path} is not valid JSON at line {number}"
            row = _decoded(line, problem, "Expected one JSON object per line.")
            rows.append(_object(row, f"{path}, line {number}:"))
    return rows


def _read_json(text: str, path: Path) -> list[Row]:
    if not text.lstrip().startswith("["):
        return _read_lines(text, path)
    rows = _decoded(text, f"{path} is not valid JSON", "Expected a list of objects, or one JSON object per line.")
    return [_object(row, f"{path}, row {number}:") for number, row in enumerate(rows, start=1)]


def _object(row: object, place: str) -> Row:
    if not isinstance(row, dict):
        raise DataError(f"{place} expected a JSON object with a value per column, found {type(row).__name__}.")
    return row


def _read_delimited(text: str, path: Path, **dialect: Any) -> list[Row]:
    """Rows under a header line; blank lines are passed over."""
    reader = csv.reader(io.StringIO(text, newline=""), **dialect)
    header: list[str] = []
    rows: list[Row] = []
    # A long text is no error: the csv module's limit on a field guards against unclosed quotes only.
    limit = csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    try:
        for fields in filter(None, reader):
            if not header:
                header = fields
            elif len(fields) == len(header):
                rows.append(dict(zip(header, fields, strict=True)))
            else:
                raise DataError(
                    f"{path}, line {reader.line_num}: expected {len(header)} fields as in the header, "
                    f"found {len(fields)}."
                )
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}.", hint="Check the quotes there.") from error
    finally:
        csv.field_size_limit(limit)
    twice = next((c for c in header if header.count(c) > 1), None)
    if twice is not None:
        raise DataError(f"{path} has more than one column named {twice!r}.")
    return rows


def _read_text(text: str, path: Path) -> list[Row]:
    del path
    return [{"text": line.removesuffix("\r")} for line in text.split("\n") if line.strip()]


def _read_tagged(text: str, path: Path) -> list[Row]:
    """A row of words a sentence: a word a line with its tag in the last column, blank lines between sentences.

    Columns are apart by tabs or, in a file without any, by spaces. A file of one column has no tags.
    """
    separator = re.compile("\t" if "\t" in text else " +")
    rows: list[Row] = []
    sentence: list[list[str]] = []
    width = 0
    for number, line in enumerate([*text.split("\n"), ""], start=1):
        if line.strip() and not line.startswith(DOCUMENT):
            fields = separator.split(line.rstrip(" \r"))
            width = width or len(fields)
            if len(fields) != width:
                raise DataError(
                    f"{path}, line {number}: expected {width} columns as in the first line, found {len(fields)}.",
                    hint="Expected a word and its tag in every line, and blank lines between sentences.",
                )
            sentence.append(fields)
            continue
        if sentence:
            tags = {"tags": [fields[-1] for fields in sentence]} if width > 1 else {}
            rows.append({"tokens": [fields[0] for fields in sentence], **tags})
        sentence = []
    return rows


TEXT_READERS: dict[str, Callable[[str, Path], list[Row]]] = {
    ".jsonl": _read_lines,
    ".json": _read_json,
    ".csv": partial(_read_delimited, strict=True),
    # Quotes are ordinary characters in the tab-separated files of GLUE and its relatives.
    ".tsv": partial(_read_delimited, delimiter="\t", quoting=csv.QUOTE_NONE),
    **dict.fromkeys((PLAIN, *RUNNING), _read_text),
    TAGGED: _read_tagged,
    ".bio": _read_tagged,
    ".iob": _read_tagged,
    ".iob2": _read_tagged,
}
