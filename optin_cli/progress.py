"""How long work reports to its caller: steps done, samples run, data read, and notes for the user."""

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


@dataclass(frozen=True)
class Part:
    """The part of longer work from one share of it to another, both from 0 to 1; `label` is put before what runs."""

    whole: Progress
    start: float = 0.0
    end: float = 1.0
    label: str = ""

    def update(self, done: float, total: float, what: str) -> None:
        """Report the share of the whole that is finished."""
        self.whole.update(self.start + (self.end - self.start) * done / total, 1, f"{self.label}{what}")

    def count(self, samples: int) -> None:
        """Pass it on."""
        self.whole.count(samples)

    def read(self, data: str) -> None:
        """Pass it on."""
        self.whole.read(data)

    def note(self, text: str) -> None:
        """Pass it on."""
        self.whole.note(text)
