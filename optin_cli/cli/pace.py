"""How far long work is, shown on stderr: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING

from optin_cli.cli import interrupts, launched
from optin_cli.cli.consoles import console, say
from optin_cli.cli.escapes import escaped
from optin_cli.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress

SAY_EVERY = 30.0
"""Seconds between two lines that say how far work is."""
NEARLY = 0.99
"""The most that is shown as finished: what is finished is no longer shown."""
BAR_WIDTH = 10


class Notes:
    """Prints notes on stderr and checks for interruptions; it shows nothing of the work."""

    def update(self, done: float, total: float, what: str) -> None:
        """End the run here if it was interrupted."""
        del done, total, what
        interrupts.check()

    def count(self, samples: int) -> None:
        """Show nothing."""

    def read(self, data: str) -> None:
        """Show nothing."""

    def note(self, text: str) -> None:
        """Print a line."""
        say(text)


class Pace:
    """The share of a step that is done, the speed of what runs, and the time that is left.

    A share that falls begins a new step.
    """

    def __init__(self) -> None:
        self.begun = self.since = self.counted = time.monotonic()
        self.share = 0.0
        self.samples = 0
        self.what = "loading"

    def update(self, done: float, total: float, what: str) -> None:
        """Take in a report."""
        share = min(done / total, NEARLY) if total else 0.0
        if share < self.share:
            self.begun = time.monotonic()
        if share < self.share or what != self.what:
            self.since, self.samples = time.monotonic(), 0
        self.share, self.what = share, what

    def count(self, samples: int) -> None:
        """Take in samples that went through a model."""
        self.samples += samples
        self.counted = time.monotonic()

    @property
    def words(self) -> str:
        """Speed (of what counts samples) and time left, as far as they are known, each after a comma."""
        passed, ran = time.monotonic() - self.begun, self.counted - self.since
        speed = f", {self.samples / ran:.3g} samples/s" if self.samples and ran > 0 else ""
        seconds = round(passed * (1 - self.share) / self.share) if self.share else None
        return speed + ("" if seconds is None else f", about {timedelta(seconds=seconds)} left")


class Bar(Notes):
    """Shows how far long work is."""

    def __init__(self, bar: RichProgress, title: str, pace: Pace) -> None:
        self.bar, self.pace = bar, pace
        self.task = bar.add_task(pace.what, title=title, total=None)

    def update(self, done: float, total: float, what: str) -> None:
        """Move the bar."""
        interrupts.check()
        self.pace.update(done, total, what)
        self.bar.update(self.task, completed=self.pace.share, total=1, description=escaped(what))

    def count(self, samples: int) -> None:
        """Measure the speed."""
        self.pace.count(samples)


class Log(Notes):
    """Says every half minute how far long work is, where there is no terminal to draw on."""

    def __init__(self, title: str) -> None:
        self.title, self.pace = title, Pace()
        self.said = time.monotonic()
        self.lock = threading.Lock()

    def update(self, done: float, total: float, what: str) -> None:
        """Say it, if that is due."""
        interrupts.check()
        self.pace.update(done, total, what)
        self.say_if_due()

    def count(self, samples: int) -> None:
        """Measure the speed."""
        self.pace.count(samples)

    def say_if_due(self) -> float:
        """Say it, if the last line is old enough; the seconds until the next is due."""
        with self.lock:
            now = time.monotonic()
            if now - self.said >= SAY_EVERY:
                self.said = now
                say(f"{self.title}: {self.pace.share:.0%}{self.pace.words} ({self.pace.what})")
            return SAY_EVERY - (now - self.said)

    def keep_saying(self, stopped: threading.Event) -> None:
        """Say it during steps that report nothing for long, until stopped."""
        while not stopped.wait(self.say_if_due()):
            pass


@contextlib.contextmanager
def progress(title: str) -> Iterator[Progress]:
    """Show on stderr how far work is, with its speed and the time left, from the first moment until it ends."""
    if not launched.leads():
        yield Notes()
        return
    talk = console(error=True)
    with _drawn(title, talk) if talk.is_terminal else _logged(title) as shown:
        yield shown


@contextlib.contextmanager
def _logged(title: str) -> Iterator[Progress]:
    log, stopped = Log(title), threading.Event()
    speaker = threading.Thread(target=log.keep_saying, args=(stopped,), daemon=True)
    speaker.start()
    try:
        yield log
    finally:
        stopped.set()
        speaker.join()


@contextlib.contextmanager
def _drawn(title: str, talk: Console) -> Iterator[Progress]:
    from rich import progress as rich_progress
    from rich.table import Column
    from rich.text import Text

    pace = Pace()

    class PaceColumn(rich_progress.ProgressColumn):
        """Percentage, speed and time left, which go on while a step reports nothing."""

        def render(self, task: rich_progress.Task) -> Text:
            words = "" if task.total is None else f"{pace.share:4.0%}{pace.words}:"
            return Text(words, style="progress.percentage")

    columns = (
        rich_progress.TextColumn("{task.fields[title]}"),
        rich_progress.BarColumn(bar_width=BAR_WIDTH),
        PaceColumn(table_column=Column(no_wrap=True)),
        rich_progress.TextColumn(
            "{task.description}",
            style="dim",
            markup=False,
            table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1),
        ),
    )
    with rich_progress.Progress(*columns, console=talk, transient=True, expand=True) as bar:
        yield Bar(bar, title, pace)
