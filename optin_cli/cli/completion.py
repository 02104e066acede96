"""What has been typed of an option's value in; the values that it may become out. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Iterable


def targets(incomplete: str) -> list[str]:
    """Export targets."""
    from optin_cli.exporting.registry import MODULES

    return _starting(incomplete, MODULES)


def tasks(incomplete: str) -> list[str]:
    """Tasks."""
    from optin_cli.tasks.registry import task_names

    return _starting(incomplete, task_names())


def criteria(incomplete: str) -> list[str]:
    """Criteria of scoring."""
    from optin_cli.options.scoring import CRITERIA

    return _starting(incomplete, CRITERIA)


def estimators(incomplete: str) -> list[str]:
    """Estimators of scoring."""
    from typing import get_args

    from optin_cli.options.scoring import Estimator

    return _starting(incomplete, get_args(Estimator))


def algorithms(incomplete: str) -> list[str]:
    """Algorithms of search."""
    from optin_cli.search.choose import ALGORITHMS

    return _starting(incomplete, ALGORITHMS)


def recipes(incomplete: str) -> list[str]:
    """Recipes, of which several may be listed: the last is completed."""
    from optin_cli.options.sweep import RECIPES

    done, comma, last = incomplete.rpartition(",")
    listed = done.split(",")
    return [f"{done}{comma}{name}" for name in _starting(last, RECIPES) if name not in listed]


def _starting(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
