"""`optin env`: what a bug report needs to know of this machine."""

from __future__ import annotations

import importlib.metadata
import platform
import re
from collections.abc import Iterable
from typing import Any

from optin_cli.cli import common, processors
from optin_cli.version import __version__

PACKAGE = "optin-cli"
REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(\[[^]]*\])?(?P<bound>[^;]*)(;.*extra == ['\"](?P<extra>[\w-]+)['\"])?")
"""A dependency as packages state it: name, version bound, and the extra that brings it."""
MISSING = "not installed"


def env(as_json: common.Json = False) -> None:
    """Print versions, processors, GPUs and installed extras, for a bug report."""
    found = _facts()
    if as_json:
        from optin_cli.artifacts.base import to_json

        common.show(to_json(found))
        return
    for name, value in found.items():
        lines = [f"{key}: {one}" for key, one in value.items()] if isinstance(value, dict) else None
        common.show(f"{name}: {value}" if lines is None else f"{name}:")
        for line in lines or []:
            common.show(f"  {line}")


def _facts() -> dict[str, Any]:
    requires = _requirements()
    return {
        "optin": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "processors": processors.usable(),
        **_devices(),
        "packages": {name: _version(name) for name in requires[None]},
        "extras": {
            str(extra): ", ".join(f"{name} {_version(name)}" for name in names)
            for extra, names in requires.items()
            if extra not in (None, "test")
        },
    }


def _devices() -> dict[str, Any]:
    """What torch computes on; a word where it cannot be imported."""
    try:
        import torch

        from optin_cli.profiling.devices import describe_device
    except (ImportError, OSError) as error:
        return {"devices": f"torch cannot be imported: {error}"}
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {
        "cpu": describe_device(torch.device("cpu")),
        "threads": torch.get_num_threads(),
        "gpu": ", ".join(gpus) or "none",
        "cuda": torch.version.cuda or "not built in",
    }


def _requirements() -> dict[str | None, list[str]]:
    """Names of the packages that this one requires, by the extra that brings them; None: always."""
    found: dict[str | None, list[str]] = {None: []}
    for line in _stated():
        if (match := REQUIREMENT.match(line)) is not None:
            found.setdefault(match["extra"], []).append(match["name"])
    return found


def _stated() -> Iterable[str]:
    try:
        return importlib.metadata.requires(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:  # run from its source, without being installed
        return []


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return MISSING
