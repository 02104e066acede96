"""Names of tasks of EleutherAI's lm-evaluation-harness, without loading it.

`lm-eval:hellaswag` is one of its own tasks or groups, `lm-eval:PATH.yaml` a task file that the user wrote.
"""

import importlib.util
from pathlib import Path
from typing import TypeGuard

from optin_cli.errors import DataError, OptinError, UsageError

PREFIX = "lm-eval:"
PACKAGE = "lm_eval"
TASK_FILES = (".yaml", ".yml")


class HarnessError(OptinError):
    """The harness is not installed, or cannot run a task."""


def is_harness_task(task: str | None) -> TypeGuard[str]:
    """Whether a task is one of the harness."""
    return task is not None and task.startswith(PREFIX)


def require_harness(task: str, data: Path | None) -> None:
    """Refuse a task of the harness that cannot be run, before a model is loaded.

    Raises UsageError: data is named beside it. HarnessError: the harness is not installed. DataError: there is no such
    file.
    """
    name = task.removeprefix(PREFIX)
    if data is not None:
        raise UsageError(
            f"{task} names its own data, but {data} was given too.",
            hint=f"Leave out --data, or pass a task file that names it: --task {PREFIX}PATH.yaml.",
        )
    if name.endswith(TASK_FILES) and not Path(name).is_file():
        raise DataError(f"The task file {name} does not exist.")
    if importlib.util.find_spec(PACKAGE) is None:
        raise HarnessError(
            f"{task} is run by the lm-evaluation-harness, which is not installed.",
            hint='pip install "optin-cli[lm-eval]"',
        )
