"""Translate the labels of the data into the model's class ids."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from optin_cli.data.images.folders import listed
from optin_cli.data.images.samples import ImageSamples
from optin_cli.data.text.label_columns import Label, Labels
from optin_cli.data.text.samples import Samples
from optin_cli.errors import DataError
from optin_cli.tasks.schema import Task


def label_ids(samples: Samples, task: Task | None, config: Any) -> dict[Label, int | float] | None:
    """What the model calls each label of the data, None if it has none (DataError: a class or kind not of the model).

    Classification: text labels go through the model's class names; so do numbers where the names that the data declares
    (or, in data with the task's own columns, the task's) are, as a set, those of the model, since models differ in the
    order of classes. Otherwise numbers are the model's ids. The map also holds every class number of the data whose
    name is known, so `map.get(1, 1)` is the model's id of the data's class 1, the positive one of F1. Regression: float
    values.

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
    known = known_classes(samples, task, config)
    mapped: dict[Label, int | float] = dict(known.numbers.items())
    return mapped | {label: known.id_of(label) for label in distinct}


def label_values(samples: Samples) -> list[float] | None:
    """The labels as numbers, one per sample; None where the samples have none (DataError if one is text)."""
    return None if samples.labels is None else [_value(label, samples.name) for label in samples.labels]


def value_rows(samples: Samples, count: int) -> list[float] | list[list[float]] | None:
    """Lists of as many numbers as the model predicts, (N, count), or (N,) of one; None where there are no lists.

    Raises DataError: a list of another length, or of text.
    """
    if samples.label_lists is None:
        return None
    for row in samples.label_lists:
        if len(row) != count:
            raise DataError(
                f"{samples.name} has the label {list(row)!r:.60}, but the model predicts {count} numbers.",
                hint="Pass the data that the checkpoint was trained for.",
            )
    rows = [[_value(label, samples.name) for label in row] for row in samples.label_lists]
    return [row[0] for row in rows] if count == 1 else rows


def label_sets(samples: Samples, task: Task | None, config: Any) -> list[list[float]] | None:
    """Which classes of the model each text has, 1 or 0, (N, classes); None where the samples have no labels.

    Where every row has a 0 or 1 for each class, these are in the order of the classes that the data declares, else in
    the model's. Other rows list the classes that they have, by name or number. DataError: no class of the model.
    """
    rows = samples.label_lists
    if rows is None:
        return None
    known, count = known_classes(samples, task, config), int(config.num_labels)
    if all(len(row) == count and set(row) <= {0, 1} for row in rows):
        rows = [tuple(place for place, label in enumerate(row) if label) for row in rows]
    ids = {label: known.id_of(label) for label in _distinct(rows)}
    marked = [{ids[label] for label in row} for row in rows]
    return [[float(number in here) for number in range(count)] for here in marked]


def tag_ids(
    samples: Samples, task: Task | None, config: Any, ignored: Collection[int]
) -> list[list[int | None]] | None:
    """The model's class of every word, None for a word that does not count; None where the samples have no labels.

    ignored: numbers in the data that stand for no class. DataError: no class of the model.
    """
    if samples.label_lists is None:
        return None
    known = known_classes(samples, task, config)
    ids = {label: None if label in ignored else known.id_of(label) for label in _distinct(samples.label_lists)}
    return [[ids[label] for label in row] for row in samples.label_lists]


@dataclass(frozen=True)
class KnownClasses:
    """How the labels of some data are the model's classes.

    source: the data's name. classes: the model's ids by name, in lower case. names: what the data (or its task) calls
    its own classes; numbers: the model's ids of these, by number. renamed: whether the names told them apart.
    """

    source: str
    classes: dict[str, int]
    names: list[str]
    numbers: dict[int, int]
    count: int

    @property
    def renamed(self) -> bool:
        """Whether numbers of the data are other numbers of the model."""
        return any(mine != theirs for theirs, mine in self.numbers.items())

    def id_of(self, label: Label) -> int:
        """The model's class that a label names (DataError if there is none)."""
        return self._of_name(label) if isinstance(label, str) else self._of_number(label)

    def _of_name(self, label: str) -> int:
        folded = label.casefold()
        if folded in self.classes:
            return self.classes[folded]
        if folded in self.names and self.names.index(folded) in self.numbers:
            return self.numbers[self.names.index(folded)]
        raise DataError(
            f"{self.source} has the label {label!r}, which is no class of the model: {', '.join(self.classes)}.",
            hint="Write the labels as the model's class names or numbers.",
        )

    def _of_number(self, label: float) -> int:
        if not float(label).is_integer() or not 0 <= label < self.count:
            raise DataError(
                f"{self.source} has the label {label}, but the model has {self.count} classes; expected a whole number "
                f"from 0 to {self.count - 1}.",
                hint="Pass the data that the checkpoint was trained for.",
            )
        return self.numbers.get(int(label), int(label))


def known_classes(samples: Samples, task: Task | None, config: Any) -> KnownClasses:
    """How the data's labels are the model's classes; arguments as of `label_ids`."""
    classes = {str(name).casefold(): int(i) for i, name in config.id2label.items()}
    names = [n.casefold() for n in samples.label_names or (task.label_names if task else None) or ()]
    # In data of other columns than the task's, only names are the task's: numbers are the model's.
    by_name = set(names) == set(classes) and (samples.label_names is not None or not samples.own)
    renamed = {i: classes[n] for i, n in enumerate(names)} if by_name else {}
    numbers = {i: renamed.get(i, i) for i in range(min(len(names), config.num_labels))}
    return KnownClasses(samples.name, classes, names, numbers, int(config.num_labels))


def _distinct(rows: Iterable[Labels]) -> list[Label]:
    return sorted({label for row in rows for label in row}, key=repr)


def _value(label: Label, name: str) -> float:
    if isinstance(label, str):
        raise DataError(f"{name} has the label {label!r}, but what is predicted is one number; expected a number.")
    return float(label)


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
