"""Differences between two artifacts or checkpoints of the same kind.

Each kind has one comparison function, named in the table below. Only the comparison of weights imports torch.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from optin_cli.artifacts.base import Source
from optin_cli.artifacts.reading import holds_scores, read_artifact
from optin_cli.artifacts.sweep import RESULT
from optin_cli.checkpoints.folders import FILE_SUFFIXES, TORCH_SUFFIXES, folder_source
from optin_cli.checkpoints.libraries.registry import CONFIG
from optin_cli.diffing.masks import diff_masks
from optin_cli.diffing.results import (
    diff_evaluations,
    diff_exports,
    diff_latencies,
    diff_profiles,
    diff_sweeps,
    diff_vocabularies,
)
from optin_cli.diffing.scores import diff_scores
from optin_cli.diffing.tables import Difference, Side
from optin_cli.errors import ArtifactError, UsageError
from optin_cli.files import STDIO, sha256_of

CHECKPOINT = "checkpoint"


def diff_weights(a: Side, b: Side) -> Difference:
    """Compare checkpoints (torch is imported only now)."""
    from optin_cli.diffing.checkpoints import diff_checkpoints

    return diff_checkpoints(a, b)


COMPARISONS: Mapping[str, Callable[[Side, Side], Difference]] = MappingProxyType(
    {
        "mask": diff_masks,
        "scores": diff_scores,
        "manifest": diff_masks,
        "eval": diff_evaluations,
        "sweep": diff_sweeps,
        "profile": diff_profiles,
        "latency": diff_latencies,
        "export": diff_exports,
        "vocabulary": diff_vocabularies,
        CHECKPOINT: diff_weights,
    }
)
"""By kind: every kind of artifact, and checkpoints."""


def diff(a: str | Path, b: str | Path) -> Difference:
    """Compare two artifacts or checkpoints of the same kind.

    Args:
        a, b: files that optin wrote, sweep folders, checkpoint folders (pruned or not), or weight files.

    Raises:
        UsageError: they are of different kinds.
        OptinError: one is missing or invalid.
    """
    mine, theirs = _open(a), _open(b)
    if mine.kind != theirs.kind:
        raise UsageError(
            f"{a} is a {mine.kind} and {b} is a {theirs.kind}; only two of one kind can be compared.",
            hint=f"Kinds: {', '.join(COMPARISONS)}.",
        )
    return COMPARISONS[mine.kind](mine, theirs)


def _open(path: str | Path) -> Side:
    place = Path(path)
    if place.is_dir():
        if (place / CONFIG).is_file():
            return Side(CHECKPOINT, folder_source(place), place, None)
        if not (place / RESULT).is_file():
            raise UsageError(
                f"{path} holds neither {CONFIG} nor {RESULT}; expected a checkpoint or what optin sweep wrote.",
                hint="Pass the file itself.",
            )
        place = place / RESULT
    elif str(path) != STDIO and not place.exists():
        raise ArtifactError(f"{path} does not exist.")
    elif place.suffix in TORCH_SUFFIXES or (place.suffix in FILE_SUFFIXES and not holds_scores(place)):
        return Side(CHECKPOINT, Source(name=place.name, sha256=sha256_of(place)), place, None)
    read = read_artifact(place)
    return Side(read.kind, Source(name=read.name, sha256=read.sha256), place, read.content)
