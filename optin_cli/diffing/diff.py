"""Differences between two artifacts or checkpoints of the same kind.

Each kind has one comparison function, named in the table below. Only the comparison of weights imports torch.
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

from optin_cli.artifacts.base import Source
from optin_cli.artifacts.reading import holds_scores, read_artifact
from optin_cli.checkpoints.folders import FILE_SUFFIXES, TORCH_SUFFIXES, folder_source
from optin_cli.checkpoints.libraries.registry import CONFIG
from optin_cli.diffing.tables import Difference, Side
from optin_cli.errors import ArtifactError, UsageError
from optin_cli.files import STDIO, sha256_of

if TYPE_CHECKING:
    from collections.abc import Callable


SWEEP = "sweep.json"
CHECKPOINT = "checkpoint"
COMPARISONS: Mapping[str, str] = MappingProxyType(
    {
        "mask": "masks:diff_masks",
        "scores": "scores:diff_scores",
        "manifest": "masks:diff_manifests",
        "eval": "results:diff_evaluations",
        "sweep": "results:diff_sweeps",
        "profile": "results:diff_profiles",
        "latency": "results:diff_latencies",
        "export": "results:diff_exports",
        CHECKPOINT: "checkpoints:diff_checkpoints",
    }
)
"""module:function by kind: every kind of artifact, and checkpoints."""


def diff(a: str | Path, b: str | Path) -> Difference:
    """Compare two artifacts or checkpoints of the same kind.

    Args:
        a, b: files that optin wrote, sweep folders, checkpoint folders (pruned or not), or weight files.

    Raises:
        UsageError: they are of different kinds.
        OptinError: one is missing or invalid.
    """
    sides = _open(a), _open(b)
    kinds = [side.kind for side in sides]
    if kinds[0] != kinds[1]:
        raise UsageError(
            f"{a} is a {kinds[0]} and {b} is a {kinds[1]}; only two of one kind can be compared.",
            hint=f"Kinds: {', '.join(COMPARISONS)}.",
        )
    module, _, function = COMPARISONS[kinds[0]].partition(":")
    compare = cast(
        "Callable[[Side, Side], Difference]", getattr(importlib.import_module(f"optin_cli.diffing.{module}"), function)
    )
    return compare(*sides)


def _open(path: str | Path) -> Side:
    place = Path(path)
    if place.is_dir():
        if (place / CONFIG).is_file():
            return Side(CHECKPOINT, folder_source(place), place, None)
        if not (place / SWEEP).is_file():
            raise UsageError(
                f"{path} holds neither {CONFIG} nor {SWEEP}; expected a checkpoint or what optin sweep wrote.",
                hint="Pass the file itself.",
            )
        place = place / SWEEP
    elif str(path) != STDIO and not place.exists():
        raise ArtifactError(f"{path} does not exist.")
    elif place.suffix in TORCH_SUFFIXES or (place.suffix in FILE_SUFFIXES and not holds_scores(place)):
        return Side(CHECKPOINT, Source(name=place.name, sha256=sha256_of(place)), place, None)
    read = read_artifact(place)
    return Side(read.kind, Source(name=read.name, sha256=read.sha256), place, read.content)
