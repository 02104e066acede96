"""Make trained transformers smaller without retraining: the Python API behind the `optin` command.

Functions are loaded on first use, so that importing the package (and `optin --help`) is instant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "diff",
    "evaluate",
    "export",
    "load",
    "profile",
    "profile_latency",
    "prune",
    "report",
    "score",
    "search",
    "sweep",
    "write_measured",
]

if TYPE_CHECKING:
    from optin_cli.api import (
        diff,
        evaluate,
        export,
        load,
        profile,
        profile_latency,
        prune,
        report,
        score,
        search,
        sweep,
        write_measured,
    )


def __getattr__(name: str) -> Any:
    if name in __all__:
        from optin_cli import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
