"""How long work reports to its caller: steps done, and notes for the user."""

from dataclasses import dataclass
from typing import Protocol


class Progress(Protocol):
    """Receives reports of long work."""

    def update(self, done: float, total: float, what: str) -> None:
        """Report that `done` of `total` weighted steps are finished, and what runs now."""

    def note(self, text: str) -> None:
        """Report something that the user should know, such as images that were skipped."""


class Silent:
    """Ignores every report."""

    def update(self, done: float, total: float, what: str) -> None:
        """Ignore it."""

    def note(self, text: str) -> None:
        """Ignore it."""


SILENT: Progress = Silent()


@dataclass(frozen=True)
class Part:
    """Part `number` (from 0) of `parts` equal parts of longer work; `label` is put before what runs."""

    whole: Progress
    number: int = 0
    parts: int = 1
    label: str = ""

    def update(self, done: float, total: float, what: str) -> None:
        """Report the share of the whole that is finished."""
        self.whole.update((self.number + done / total) / self.parts, 1, f"{self.label}{what}")

    def note(self, text: str) -> None:
        """Pass it on."""
        self.whole.note(text)


@dataclass(frozen=True)
class Stretch:
    """Longer work from one share of it to another, both from 0 to 1."""

    whole: Progress
    start: float
    end: float

    def update(self, done: float, total: float, what: str) -> None:
        """Report the share of the whole that is finished."""
        self.whole.update(self.start + (self.end - self.start) * done / total, 1, what)

    def note(self, text: str) -> None:
        """Pass it on."""
        self.whole.note(text)
