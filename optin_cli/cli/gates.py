"""Say what the samples tell of a limit on a drop, and give the exit status."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optin_cli.cli import common
from optin_cli.errors import Exit

if TYPE_CHECKING:
    from optin_cli.artifacts.evaluation import Evaluation


def judge(result: Evaluation, max_drop: float | None, confidence: float) -> Exit:
    """Whether an evaluation passes the gate, if there is one; the reasons go to stderr."""
    if max_drop is None:
        return Exit.DONE
    from optin_cli.evaluation.evaluate import drop_of, require_drop
    from optin_cli.evaluation.gate import Gate

    problem, said = require_drop(result, max_drop, confidence), Gate(max_drop, confidence).words(drop_of(result))
    if said is not None:
        common.say(said)
    return common.gate(problem)
