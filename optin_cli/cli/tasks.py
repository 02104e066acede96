"""`optin tasks`: what models can be measured on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from optin_cli.cli import common, completion

if TYPE_CHECKING:
    from optin_cli.tasks.schema import Task


def tasks(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="TASK", help="The one to explain.", show_default="list all", autocompletion=completion.tasks
        ),
    ] = None,
    as_json: common.Json = False,
) -> None:
    """List the tasks that models are measured on, or explain one."""
    from optin_cli.artifacts.base import to_json
    from optin_cli.tasks.registry import load_task, task_names

    found = [load_task(each) for each in (task_names() if name is None else [name])]
    if as_json:
        raws = [task.model_dump(mode="json", exclude_none=True) for task in found]
        common.show(to_json(raws if name is None else raws[0]))
    elif name is None:
        _print_all(found)
    else:
        for line in _explained(found[0]):
            common.show(line)


def _print_all(found: list[Task]) -> None:
    from optin_cli.cli.fitting import FittingTable

    table = FittingTable(caption="own: your data, passed with --data; the others have a dataset of their own")
    table.add_names("task", whole=True)
    table.add_names("kind")
    table.add_names("reads", whole=True)
    table.add_names("metric")
    table.add_names("data")
    for task in found:
        table.add_row(task.name, task.kind, task.input, ", ".join(task.metrics), _dataset(task) or "own")
    common.console().print(table)


def _dataset(task: Task) -> str | None:
    """The dataset on the hub, and which part of it."""
    return None if task.dataset is None else " ".join(filter(None, (task.dataset.path, task.dataset.config)))


def _explained(task: Task) -> list[str]:
    """What a task says, in a line each."""
    dataset, labels = _dataset(task), task.label_names or ()
    lines = [f"{task.name}: {task.kind} of {task.input}s, measured by {', '.join(task.metrics)} (the first decides)"]
    if dataset is not None:
        lines.append(
            f"data: {dataset} of the hub; calibrates on its split {task.splits.calibration}, evaluates on "
            f"{task.splits.evaluation}; a local copy: --data PATH"
        )
    else:
        lines.append("data: your own, --data PATH; labels are the model's classes, by name or number")
    texts = ", ".join(task.text_columns) or ("guessed, or --text-columns" if task.input == "text" else "")
    lines += [f"text columns: {texts}"] if texts else []
    label = " or ".join((*task.label_columns, *task.other_label_columns))
    lines += [f"label column: {label} (or --label-column)"] if label else ["labels: the texts themselves"]
    lines += [f"classes: {len(labels)}: {', '.join(labels)}"] if labels else []
    return lines
