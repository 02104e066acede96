"""Whether torchrun started several processes of this command, which then share its work and speak with one voice."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from optin_cli.errors import Exit, ProcessError, UsageError

if TYPE_CHECKING:
    from optin_cli.processes.processes import Processes

RUN, RANK, COUNT = "TORCHELASTIC_RUN_ID", "RANK", "WORLD_SIZE"
"""Variables that torchrun sets."""
SHARED = ("eval", "prune", "score")
"""Commands whose work can be shared."""


def count() -> int:
    """How many processes torchrun started, 1 where it did not start this one."""
    return int(os.environ.get(COUNT, "1")) if RUN in os.environ else 1


def leads() -> bool:
    """Whether this process writes and prints for all."""
    return count() == 1 or os.environ.get(RANK) == "0"


@contextlib.contextmanager
def processes() -> Iterator[Processes | None]:
    """The processes of this run, None for this one alone. Of those that fail, the first says why, and others end."""
    if count() == 1:
        yield None
        return
    from optin_cli.processes.launch import joined

    with joined() as found:
        try:
            yield found
        except (Exception, KeyboardInterrupt) as error:
            if not found.fails_first():
                raise SystemExit(Exit.FAILURE) from error
            if isinstance(error, KeyboardInterrupt):  # so torchrun ends those that are left when one has ended
                raise ProcessError(
                    "Interrupted: another process of this run has ended, or torchrun was told to stop.",
                    hint="optin score goes on from what it kept if the command is repeated with --resume.",
                ) from error
            raise


def require_shared(command: str | None) -> None:
    """Refuse a command that cannot be shared (UsageError)."""
    if count() > 1 and command not in SHARED:
        raise UsageError(
            f"optin {command} was started in {count()} processes, but runs in one.",
            hint=f"Leave out torchrun; it is for optin {', optin '.join(SHARED[:-1])} and optin {SHARED[-1]}.",
        )
