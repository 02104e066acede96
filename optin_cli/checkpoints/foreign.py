"""What other libraries raise over files that they do not expect, as one error of ours; and what they print."""

import contextlib
import os
import sys
from collections.abc import Iterator

from optin_cli.errors import CheckpointError, OptinError, first_line

PANIC = "pyo3_runtime"
"""Module of what libraries in Rust raise where they break, which is no Exception of Python."""

STDOUT = 1
"""File descriptor of standard output."""


@contextlib.contextmanager
def explaining(what: str, hint: str | None = None) -> Iterator[None]:
    """Turn any error but ours and a lack of memory into a CheckpointError: `what`, and the error's first line.

    Libraries check little of what they read, so that a damaged file may raise any error anywhere in them.
    """
    try:
        yield
    except (OptinError, MemoryError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__module__ != PANIC:
            raise
        kind = "" if isinstance(error, (ValueError, OSError, RuntimeError)) else f"{type(error).__name__}: "
        raise CheckpointError(f"{what}: {kind}{first_line(error)}", hint=hint) from error


@contextlib.contextmanager
def unheard() -> Iterator[None]:
    """Keep what compiled libraries print out of standard output, which is for data.

    The file descriptor leads nowhere meanwhile, so that nothing that a file holds reaches a terminal or a pipe by them.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # standard output is closed
            kept = os.dup(STDOUT)
            stack.callback(os.close, kept)
            if sys.stdout is not None:
                sys.stdout.flush()
            nowhere = os.open(os.devnull, os.O_WRONLY)
            stack.callback(os.close, nowhere)
            os.dup2(nowhere, STDOUT)
            stack.callback(os.dup2, kept, STDOUT)
        yield
