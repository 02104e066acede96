"""Read the accepted answers of question answering data."""

from optin_cli.data.text.tables import Table
from optin_cli.errors import DataError
from optin_cli.tasks.schema import Role, Task

Answers = tuple[str, ...]


def read_answers(table: Table, column: str, task: Task, role: Role) -> list[Answers] | None:
    """Accepted answers of every row as SQuAD writes them, {"text": [...]}; None where no row has the field.

    A list of {"text": "..."} is read too. Partly answered data counts as unlabelled for calibration. DataError, which
    names the row: it is partly answered for evaluation, has a question without an answer in a task that knows none, or
    a value of another form.
    """
    found = [_answers(row.get(column), n, table.name, column) for n, row in enumerate(table.rows, start=1)]
    known = [answers for answers in found if answers is not None]
    if role == "evaluation" and 0 < len(known) < len(found):
        raise DataError(
            f"{table.name} has answers in part: row {found.index(None) + 1} is the first of "
            f"{len(found) - len(known)} with column {column!r} empty.",
            hint="Remove those rows.",
        )
    if role == "evaluation" and task.unanswerable is False and () in known:
        raise DataError(
            f"Row {found.index(()) + 1} of {table.name} has no answer, but every question of task {task.name} has one.",
            hint="Pass --task squad_v2 for data with unanswerable questions, or remove those rows.",
        )
    return known if len(known) == len(found) else None


def _answers(value: object, number: int, name: str, column: str) -> Answers | None:
    if value is None or value == "":
        return None
    texts: object = None
    if isinstance(value, dict):
        texts = value.get("text")
    elif isinstance(value, list):
        texts = [item.get("text") if isinstance(item, dict) else item for item in value]
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise DataError(
            f'Row {number} of {name}, column {column!r}: expected answers as {{"text": ["..."], '
            f'"answer_start": [0]}}, found {value!r:.60}.',
            hint="SQuAD's own form, as datasets and its .jsonl copies have it.",
        )
    return tuple(texts)
