"""Turn signals into KeyboardInterrupt, raised again at the next step where a library swallowed it."""

import signal
from types import FrameType
from typing import NoReturn


class Interrupted:
    """A signal handler that raises KeyboardInterrupt and remembers that it did.

    An exception that a handler raises inside a weak reference's callback or a destructor is dropped by Python, and the
    run would go on; so what loops asks again, by `check`.
    """

    def __init__(self) -> None:
        self.pending = False

    def __call__(self, _signal: int, _frame: FrameType | None) -> NoReturn:
        """Remember, and raise."""
        self.pending = True
        raise KeyboardInterrupt


def watch() -> None:
    """Handle SIGINT and SIGTERM from now on."""
    handler = Interrupted()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


def check() -> None:
    """Raise KeyboardInterrupt if a signal came, whether or not it was swallowed."""
    handler = signal.getsignal(signal.SIGINT)
    if isinstance(handler, Interrupted) and handler.pending:
        raise KeyboardInterrupt
