"""Look up the shipped tasks, one JSON file each, without torch: unknown ones are refused before a model is loaded."""

from pathlib import Path

from pydantic import ValidationError

from optin_cli.errors import DataError, did_you_mean, problems
from optin_cli.tasks.schema import InputKind, Task

FOLDER = Path(__file__).parent


def task_names() -> list[str]:
    """Names of every shipped task, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def parse_task(path: Path) -> Task:
    """Read and validate one task file (DataError, with every problem in it, if it is not a valid one)."""
    try:
        return Task.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"The task file {path} cannot be read: {error.strerror}.") from error
    except ValidationError as error:
        raise DataError(
            f"{path} is not a valid task file:\n{problems(error)}",
            hint=f"Start from one of those in {FOLDER.name}/ of the package, such as sst2.json.",
        ) from error


def load_task(name: str) -> Task:
    """The shipped task of that name (DataError, naming the nearest, if there is none)."""
    names = task_names()
    if name not in names:
        raise DataError(f"There is no task named {name!r}.", hint=did_you_mean(name, names))
    return parse_task(FOLDER / f"{name}.json")


def own_task(kind: str, takes: InputKind) -> Task | None:
    """The shipped task of that kind and input for the user's data: no dataset, no classes; None without just one."""
    wanted = (kind, takes, None, None)
    every = map(load_task, task_names())
    found = [task for task in every if (task.kind, task.input, task.dataset, task.label_names) == wanted]
    return found[0] if len(found) == 1 else None
