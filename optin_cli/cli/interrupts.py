"""Turn signals into KeyboardInterrupt, raised again at the next step where a library swallowed it."""

import math
import signal
import time
from types import FrameType

GRACE = 2.0
"""Seconds between a signal and the next that counts: supervisors and shells send several at once."""


class Interrupted:
    """A signal handler that raises KeyboardInterrupt and remembers that it did.

    Further signals are dropped for GRACE seconds, in which the first ends the run, and once the run has ended.
    An exception that a handler raises inside a weak reference's callback or a destructor is dropped by Python, and the
    run would go on; so what loops asks again, by `check`.
    """

    def __init__(self) -> None:
        self.pending = self.ended = False
        self.first = -math.inf

    def __call__(self, _signal: int, _frame: FrameType | None) -> None:
        """Remember, and raise."""
        now = time.monotonic()
        if self.ended or now - self.first < GRACE:
            return
        self.pending, self.first = True, now
        raise KeyboardInterrupt


def watch() -> None:
    """Handle SIGINT and SIGTERM from now on."""
    handler = Interrupted()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


def end() -> None:
    """Drop signals from now on: the run has ended, and says so."""
    handler = signal.getsignal(signal.SIGINT)
    if isinstance(handler, Interrupted):
        handler.ended = True


def came() -> bool:
    """Whether a signal came that was to end the run."""
    handler = signal.getsignal(signal.SIGINT)
    return isinstance(handler, Interrupted) and handler.pending


def check() -> None:
    """Raise KeyboardInterrupt if a signal came, whether or not it was swallowed."""
    if came():
        raise KeyboardInterrupt
