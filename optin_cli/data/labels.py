"""Translate the labels of the data into the model's class ids."""

from collections.abc import Sequence
from typing import Any

from optin_cli.data.images.folders import listed
from optin_cli.data.images.samples import ImageSamples
from optin_cli.data.text.samples import Label, Samples
from optin_cli.errors import DataError
from optin_cli.tasks.schema import Task


def label_ids(samples: Samples, task: Task | None, config: Any) -> dict[Label, int | float] | None:
    """What the model calls each label of the data, None if it has none (DataError: a class or kind not of the model).

    Classification: text labels go through the model's class names; so do numbers where the names of the data (or of the
    task) are, as a set, those of the model, since models differ in the order of classes. Otherwise numbers stay as they
    are. The map also holds every class number of the data whose name is known, so `map.get(1, 1)` is the model's id of
    the data's class 1, the positive one of F1. Regression: float values.

    task: gives names where the data does not, and the kind; None takes the kind from the model. config: the model's
    transformers configuration (num_labels, id2label, problem_type).
    """
    if samples.labels is None:
        return None
    regression = config.num_labels == 1
    if task is not None and (task.kind == "regression") is not regression:
        raise DataError(
            f"Task {task.name} is a {task.kind} task, but the model has {config.num_labels} output"
            f"{'' if regression else 's'}.",
            hint="Pass a checkpoint that was trained on this task.",
        )
    distinct = sorted(set(samples.labels), key=repr)
    if regression or config.problem_type == "regression":
        return {label: _value(label, samples.name) for label in distinct}
    classes = {str(name).casefold(): int(i) for i, name in config.id2label.items()}
    names = [n.casefold() for n in samples.label_names or (task.label_names if task else None) or ()]
    renamed = {i: classes[n] for i, n in enumerate(names)} if set(names) == set(classes) else {}
    numbers = {i: renamed.get(i, i) for i in range(min(len(names), config.num_labels))}
    mapped: dict[Label, int | float] = dict(numbers.items())
    for label in distinct:
        if isinstance(label, str):
            mapped[label] = _class_of_name(label, classes, names, numbers, samples.name)
        else:
            mapped[label] = _class_of_number(label, renamed, config.num_labels, samples.name)
    return mapped


def label_values(samples: Samples) -> list[float] | None:
    """The labels as numbers, one per sample; None where the samples have none (DataError if one is text)."""
    return None if samples.labels is None else [_value(label, samples.name) for label in samples.labels]


def _value(label: Label, name: str) -> float:
    if isinstance(label, str):
        raise DataError(f"{name} has the label {label!r}, but what is predicted is one number; expected a number.")
    return float(label)


def _class_of_name(label: str, classes: dict[str, int], names: list[str], numbers: dict[int, int], source: str) -> int:
    folded = label.casefold()
    if folded in classes:
        return classes[folded]
    if folded in names and names.index(folded) in numbers:
        return numbers[names.index(folded)]
    raise DataError(
        f"{source} has the label {label!r}, which is no class of the model: {', '.join(classes)}.",
        hint="Write the labels as the model's class names or numbers.",
    )


def _class_of_number(label: float, renamed: dict[int, int], count: int, source: str) -> int:
    if not float(label).is_integer() or not 0 <= label < count:
        raise DataError(
            f"{source} has the label {label}, but the model has {count} classes; expected a whole number "
            f"from 0 to {count - 1}.",
            hint="Pass the data that the checkpoint was trained for.",
        )
    return renamed.get(int(label), int(label))


def image_class_ids(
    samples: ImageSamples, task: Task | None, classes: Sequence[str] | None, num_labels: int
) -> list[int] | None:
    """The model's class of every image, None where there are no labels (DataError if the data has other classes).

    Classes of the data are those of the model that have the same name; else, in the order of the task, those that the
    task names so; else, if there are as many as the model has, its classes in the order of their names (for a dataset:
    in its own order).

    classes: the model's own names of its `num_labels` classes, in order, where it has such.
    """
    if samples.labels is None:
        return None
    found = [name.casefold() for name in samples.label_names or ()]
    for known in (classes, task.label_names if task else None):
        numbers = {name.casefold(): number for number, name in enumerate(known or ())}
        # A name that two classes share identifies neither; ImageNet has two cranes.
        if found and len(numbers) == len(known or ()) == num_labels and set(found) <= set(numbers):
            return [numbers[found[label]] for label in samples.labels]
    most = max(samples.labels)
    count = len(found) if found else most + 1
    if (found and count != num_labels) or count > num_labels or min(samples.labels) < 0:
        named = f", {listed(samples.label_names)}," if samples.label_names else ""
        theirs = f" ({listed(classes)})" if classes else ""
        raise DataError(
            f"{samples.name} has {count:,} classes{named} but the model has {num_labels:,}{theirs}.",
            hint="Pass the data that the checkpoint was trained for; of classes that both name alike some may lack.",
        )
    return list(samples.labels)
