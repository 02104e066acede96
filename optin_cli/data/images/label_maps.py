"""What the ids in label maps mean: classes of the model, or pixels that do not count."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from optin_cli.data.images.folders import listed
from optin_cli.errors import DataError
from optin_cli.tasks.schema import LabelMapRule, Task

Ids = NDArray[np.integer]
Classes = NDArray[np.int32]
IGNORED, UNKNOWN = -1, -2
"""What a pixel is that does not count, and one whose id nothing explains."""
HIGHEST = 2**16 - 1
"""Of the ids that a file of 16 bits can hold."""
USUALLY_IGNORED = 255


@dataclass(frozen=True)
class LabelIds:
    """What ids mean to a model of `classes` classes.

    ignored: ids of pixels that do not count. reduced: nor does id 0, and id n is class n - 1 of the data. raw: class of
    the data by id, where ids are those of another list, whose others do not count. order: the model's class of each
    class of the data; None where they are the same. names: the model's, where known.

    Raises DataError: the other list has another number of classes than the model.
    """

    classes: int
    ignored: tuple[int, ...]
    reduced: bool = False
    raw: Mapping[int, int] | None = None
    order: tuple[int, ...] | None = None
    names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        count = len({*(self.raw or {}).values()})
        if self.raw is not None and count != self.classes:
            raise DataError(
                f"The label maps have ids of {count} classes, but the model has {self.classes}.",
                hint="Pass the data that the checkpoint was trained for.",
            )

    @cached_property
    def table(self) -> Classes:
        """Class, IGNORED or UNKNOWN by id, (65536,) int32."""
        table = np.full(HIGHEST + 1, IGNORED if self.raw is not None else UNKNOWN, np.int32)
        order = self.order or tuple(range(self.classes))
        first = 1 if self.reduced else 0
        ids = self.raw if self.raw is not None else {first + number: number for number in range(len(order))}
        for label, number in ids.items():
            table[label] = order[number]
        table[[label for label in (*self.ignored, *([0] if self.reduced else ())) if label <= HIGHEST]] = IGNORED
        return table

    def classes_of(self, ids: Ids, name: str) -> Classes:
        """The model's class of every pixel, or IGNORED, of the same shape (DataError: an id without a class).

        name: what messages call the label map.
        """
        wide = ids.astype(np.int64)
        found = self.table[np.clip(wide, 0, HIGHEST)]
        unknown = (found == UNKNOWN) | (wide < 0) | (wide > HIGHEST)
        if unknown.any():
            strange = sorted(set(wide[unknown].tolist()))
            raise DataError(
                f"The label map {name} has {_counted(strange)}, in {int(unknown.sum()):,} pixels, which is no class: "
                f"{self._known()}.",
                hint="Name the ids of pixels that do not count with --ignore-index, or pass the data that the "
                "checkpoint was trained for.",
            )
        return found

    def _known(self) -> str:
        first = 1 if self.reduced else 0
        names = f" ({listed(self.names)})" if self.names else ""
        count = len(self.order or range(self.classes))
        ignored = ", ".join(map(str, sorted({*self.ignored, *([0] if self.reduced else [])})))
        return f"ids {first} to {first + count - 1} are those of the classes{names}; ignored: {ignored}"


def _counted(ids: Sequence[int]) -> str:
    return f"the id {ids[0]}" if len(ids) == 1 else f"the ids {listed([*map(str, ids)])}"


def explain_ids(
    task: Task | None,
    usual: LabelMapRule,
    classes: Sequence[str] | None,
    count: int,
    ignored: tuple[int, ...] | None = None,
) -> LabelIds:
    """What ids mean to a model, by the task, else by the checkpoint's own preprocessing.

    Classes of the data are those of the model that have the same name, if all have; else those of the same number.

    Args:
        usual: what the checkpoint's image processor says, for what the task leaves open.
        classes: the model's names of its `count` classes, where it has such.
        ignored: ids of pixels that do not count, if the user named them; else what task or processor says, and 255.

    Raises:
        DataError: the task has another number of classes than the model.
    """
    rule = (task and task.maps) or LabelMapRule()
    named = (task and task.label_names) or ()
    order = None
    if named:
        numbers = {name.casefold(): number for number, name in enumerate(classes or ())}
        found = [name.casefold() for name in named]
        if len(numbers) == count and set(found) == set(numbers):
            order = tuple(numbers[name] for name in found)
        elif len(named) != count:
            theirs = f" ({listed(classes)})" if classes else ""
            raise DataError(
                f"The task {task.name if task else ''} has {len(named):,} classes, {listed(named)}, but the model has "
                f"{count:,}{theirs}.",
                hint="Pass a checkpoint that was trained on this task, or --task semantic-segmentation.",
            )
    own = rule.ignore_index if rule.ignore_index is not None else usual.ignore_index
    return LabelIds(
        classes=count,
        ignored=tuple(sorted({USUALLY_IGNORED, *(() if own is None else (own,))})) if ignored is None else ignored,
        reduced=bool(usual.reduce_labels if rule.reduce_labels is None else rule.reduce_labels),
        order=order,
        names=tuple(classes) if classes else None,
    )
