"""Documents of running text: whole files, rows, and conversations.

A text file is one document with its line breaks; a row of any other file is one, of its text columns or of `messages`.
A task may say that rows are lines of one text: those of WikiText are joined by blank lines, as published perplexities
take it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optin_cli.data.sources import WHOLE
from optin_cli.data.spec import DataSpec
from optin_cli.data.text.formats import PLAIN, RUNNING, read_whole
from optin_cli.data.text.label_columns import listed, place_of
from optin_cli.data.text.samples import read_texts, text_columns
from optin_cli.data.text.tables import Table, read_table
from optin_cli.errors import DataError
from optin_cli.tasks.schema import Task

MESSAGES = "messages"
"""The column of conversations, each a list of messages."""
ROLE, CONTENT = "role", "content"
Message = dict[str, Any]
Document = str | list[Message]
"""A text, or the messages of a conversation."""


@dataclass(frozen=True)
class Documents:
    """Documents of one split, in the order of the file."""

    name: str
    split: str
    items: list[Document]


def read_documents(spec: DataSpec, task: Task | None, path: Path | None) -> Documents:
    """Read the documents of a file, a folder or the dataset of a task.

    Raises:
        DataError: missing, malformed, without any text, or without a column of it.
    """
    joined = None if task is None else task.joined
    if path is not None and path.is_file() and path.suffix.lower() in (PLAIN, *RUNNING):
        text = read_whole(path).replace("\r\n", "\n")
        whole: list[Document] = [text if joined is None else _joined(text, joined)]
        found = Documents(path.resolve().name, WHOLE, whole)
    else:
        table = read_table(path, task, spec.role)
        found = Documents(table.name, table.split, _rows(table, task, spec.columns, joined))
    if not any(item if isinstance(item, list) else item.strip() for item in found.items):
        raise DataError(f"{found.name} holds no text.", hint="Pass a file of running text.")
    return found


def _joined(text: str, separator: str) -> str:
    """Lines joined as the rows of the dataset would be, which end in a line break, or are empty."""
    lines = text.removesuffix("\n").split("\n")
    return separator.join(f"{line}\n" if line.strip() else "" for line in lines)


def _rows(table: Table, task: Task | None, asked: Sequence[str] | None, joined: str | None) -> list[Document]:
    chosen = tuple(asked or ())
    if chosen == (MESSAGES,) or (not chosen and MESSAGES in table.columns):
        return [_messages(row.get(MESSAGES), place_of(table, n, MESSAGES)) for n, row in enumerate(table.rows, 1)]
    texts = ["\n".join(row) for row in read_texts(table, text_columns(table, task, asked))]
    return [*texts] if joined is None else [joined.join(texts)]


def _messages(value: object, place: str) -> list[Message]:
    """A conversation, which may be written as text."""
    value = listed(value)
    if not isinstance(value, (list, tuple)) or not value:
        raise DataError(f"{place} expected a list of messages, found {value!r:.60}.")
    for message in value:
        if not isinstance(message, dict) or not isinstance(message.get(ROLE), str) or message.get(CONTENT) is None:
            raise DataError(
                f"{place} expected messages with {ROLE} and {CONTENT}, found {message!r:.60}.",
                hint='Such as {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}.',
            )
    return [dict(message) for message in value]
