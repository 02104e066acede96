"""The templates of pages and pictures."""

import functools
from typing import Any


@functools.cache
def environment() -> Any:
    """Templates that escape what they are given and refuse what they do not know."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("optin_cli", "reporting")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
