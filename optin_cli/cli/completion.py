"""Shell completion of values. Nothing here imports torch."""

from collections.abc import Iterable


def targets(incomplete: str) -> list[str]:
    """Export targets."""
    from optin_cli.exporting.registry import TARGETS

    return starting(incomplete, TARGETS)


def tasks(incomplete: str) -> list[str]:
    """Tasks."""
    from optin_cli.tasks.registry import task_names

    return starting(incomplete, task_names())


def recipes(incomplete: str) -> list[str]:
    """Recipes."""
    from optin_cli.options.sweep import RECIPES

    return starting(incomplete, RECIPES)


def starting(incomplete: str, names: Iterable[str]) -> list[str]:
    """The names that begin as typed."""
    return [name for name in names if name.startswith(incomplete)]


def listed(incomplete: str, names: Iterable[str]) -> list[str]:
    """For a comma-separated list, the names that its last may become and that are not in it yet."""
    done, comma, last = incomplete.rpartition(",")
    return [f"{done}{comma}{name}" for name in starting(last, names) if name not in done.split(",")]
