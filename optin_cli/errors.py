"""The exception family: what is wrong, what was expected, what to do next, and the exit status."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


NEAR = 0.7
"""How alike a name must be to be what the user may have meant, from 0 to 1."""


class Exit(IntEnum):
    """Process exit statuses of every command."""

    DONE = 0
    FAILURE = 1
    USAGE = 2
    GATE = 3
    INTERRUPTED = 130


class OptinError(Exception):
    """A failure a user can act on: `message` names what was found and what was expected, `hint` what to do next."""

    status: Exit = Exit.FAILURE

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(OptinError):
    """Options that contradict each other or lie outside their range."""

    status = Exit.USAGE


class CheckpointError(OptinError):
    """A checkpoint that cannot be read, is incomplete, or cannot be written."""


class ArchitectureError(OptinError):
    """A model that no architecture description fits, or a description that does not fit its model."""


class DataError(OptinError):
    """Calibration or evaluation data that is missing, empty or of the wrong form."""


class ArtifactError(OptinError):
    """An artifact that is unreadable, invalid, or made from other inputs than those given."""


class BudgetError(OptinError):
    """A budget that no mask can meet. reachable: name and smallest reachable share, where known."""

    def __init__(self, message: str, *, hint: str | None = None, reachable: tuple[str, float] | None = None) -> None:
        super().__init__(message, hint=hint)
        self.reachable = reachable


class CertificateError(OptinError):
    """A pruned checkpoint whose reloaded outputs differ from those of the model in memory."""


class ProcessError(OptinError):
    """Another process of the run has ended, so that this one cannot finish."""


class GateError(OptinError):
    """A quality gate that was measured and not met."""

    status = Exit.GATE


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Hint that lists the nearest known names first, then all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=NEAR)
    lead = f"Did you mean {' or '.join(near)}? " if near else ""
    return f"{lead}Known: {', '.join(names)}."


def problems(error: ValidationError) -> str:
    """Every problem that pydantic found in a document, a line each."""
    return "\n".join(
        f"  {'.'.join(map(str, e['loc'])) or '(root)'}: {e['msg'].removeprefix('Value error, ')}"
        for e in error.errors()
    )


def headline(error: BaseException) -> str:
    """First line of an error's text, with the second where that goes on, or the name of its type."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    if len(lines) > 1 and lines[0].endswith(":"):
        return f"{lines[0]} {lines[1]}"
    return lines[0] if lines else type(error).__name__


def first_line(error: BaseException) -> str:
    """The headline of an error as a sentence."""
    return f"{headline(error).rstrip('.')}."
