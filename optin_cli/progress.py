"""How long work reports to its caller: steps done, samples run, data read, and notes for the user."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol


class Progress(Protocol):
    """Receives reports of long work."""

    def update(self, done: float, total: float, what: str) -> None:
        """Report that `done` of `total` weighted steps are finished, and what runs now."""

    def count(self, samples: int) -> None:
        """Report that so many more samples went through a model."""

    def read(self, data: str) -> None:
        """Report which data was read: how many samples, and from which columns."""

    def note(self, text: str) -> None:
        """Report something that the user should know, such as images that were skipped."""


class Silent:
    """Ignores every report."""

    def update(self, done: float, total: float, what: str) -> None:
        """Ignore it."""

    def count(self, samples: int) -> None:
        """Ignore it."""

    def read(self, data: str) -> None:
        """Ignore it."""

    def note(self, text: str) -> None:
        """Ignore it."""


SILENT: Progress = Silent()


class Relay:
    """Passes reports on to another; those that know more override what they change."""

    whole: Progress

    def update(self, done: float, total: float, what: str) -> None:
        """Pass it on."""
        self.whole.update(done, total, what)

    def count(self, samples: int) -> None:
        """Pass it on."""
        self.whole.count(samples)

    def read(self, data: str) -> None:
        """Pass it on."""
        self.whole.read(data)

    def note(self, text: str) -> None:
        """Pass it on."""
        self.whole.note(text)


@dataclass(frozen=True)
class Part(Relay):
    """The part of longer work from one share of it to another, both from 0 to 1; `label` is put before what runs."""

    whole: Progress
    start: float = 0.0
    end: float = 1.0
    label: str = ""

    def update(self, done: float, total: float, what: str) -> None:
        """Report the share of the whole that is finished."""
        share = done / total
        self.whole.update(self.start * (1 - share) + self.end * share, 1, f"{self.label}{what}")


class Steps(Relay):
    """Reports the steps of longer work one after another, as shares of the whole.

    Args:
        whole: who is told.
        weight: sum of the weights of all steps, in proportion to the time that they are expected to take; steps beyond
            it report that the whole is nearly done.
    """

    def __init__(self, whole: Progress, weight: float) -> None:
        self.whole, self.weight, self.done = whole, weight, 0.0
        self.span, self.label = (0.0, 0.0), ""

    @contextlib.contextmanager
    def begin(self, weight: float, label: str = "") -> Iterator[None]:
        """Take reports as those of a step of this weight, until the block ends. label: put before what runs."""
        self.span = min(1.0, self.done / self.weight), min(1.0, (self.done + weight) / self.weight)
        self.label = label
        yield
        self.done += weight

    def update(self, done: float, total: float, what: str) -> None:
        """Report the share of the whole that is finished."""
        Part(self.whole, *self.span, self.label).update(done, total, what)
