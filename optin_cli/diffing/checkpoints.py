"""Differences between two checkpoints: config keys, tensor shapes and weights, and the masks of pruned ones."""

from pathlib import Path

import torch
from pydantic import JsonValue

from optin_cli.artifacts.base import parse
from optin_cli.artifacts.manifest import Manifest
from optin_cli.checkpoints.folders import MANIFEST, weight_files
from optin_cli.checkpoints.libraries.registry import CONFIG, PLAN_KEY
from optin_cli.checkpoints.weights import State, read_state
from optin_cli.diffing.masks import diff_groups
from optin_cli.diffing.tables import (
    Difference,
    Row,
    Section,
    Side,
    diff_bodies,
    diff_heads,
    diff_values,
    difference,
    flatten,
)
from optin_cli.errors import CheckpointError
from optin_cli.files import load_json


def diff_checkpoints(a: Side, b: Side) -> Difference:
    """Compare config keys, tensor shapes and dtypes, and the weights of tensors of equal shape."""
    mine, theirs = (_weights(side.path) for side in (a, b))
    tensors = diff_values({k: _form(t) for k, t in mine.items()}, {k: _form(t) for k, t in theirs.items()})
    weights = _diff_weights(mine, theirs)
    worst = max(weights, key=lambda name: float(str(weights[name]["largest difference"])), default=None)
    here, there = (sum(tensor.numel() for tensor in state.values()) for state in (mine, theirs))
    counts: Row = {
        "parameters a": here,
        "parameters b": there,
        "parameters b / a": round(there / here, 4) if here else None,
        "tensors in both": len(mine.keys() & theirs.keys()),
        "tensors only in a": len(mine.keys() - theirs.keys()),
        "tensors only in b": len(theirs.keys() - mine.keys()),
        "tensors of other shape or type": sum(name in mine and name in theirs for name in tensors),
        "tensors of equal shape whose weights differ": len(weights),
        "largest difference": None if worst is None else weights[worst]["largest difference"],
    }
    sections = {"config": diff_values(_config(a.path), _config(b.path)), "tensors": tensors, "weights": weights}
    records = [_manifest(side.path) for side in (a, b)]
    if records[0] is not None and records[1] is not None:
        groups = diff_groups(records[0].groups, records[1].groups)[1]
        record = diff_bodies(records[0], records[1], "groups", "weights")
        sections |= {"groups": groups, "record": record, **diff_heads(records[0], records[1])}
    return difference(a, b, counts, sections)


def _weights(path: Path) -> State:
    return read_state(weight_files(path) if path.is_dir() else [path])


def _form(tensor: torch.Tensor) -> JsonValue:
    return f"{'x'.join(map(str, tensor.shape)) or 'scalar'} {str(tensor.dtype).removeprefix('torch.')}"


def _diff_weights(a: State, b: State) -> Section:
    """Compare tensors of equal shape; `relative` is the norm of the difference over the norm of the weights of `a`."""
    rows: Section = {}
    for name in sorted(a.keys() & b.keys()):
        if a[name].shape != b[name].shape or torch.equal(a[name], b[name]):
            continue
        mine = a[name].to(torch.float64)
        change = b[name].to(torch.float64) - mine
        norm = float(mine.norm())
        largest = float(change.abs().max())
        if largest > 0:
            rows[name] = {"largest difference": largest, "relative": float(change.norm()) / norm if norm else None}
    return rows


def _config(path: Path) -> dict[str, JsonValue]:
    """Read a config with nested keys joined by dots; the pruning plan stays one value."""
    file = path / CONFIG
    if not path.is_dir():
        return {}
    try:
        raw = load_json(file, foreign=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} is not valid JSON: {error}.") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{file} holds a {type(raw).__name__}; expected an object.")
    return flatten(raw, whole=(PLAN_KEY,))


def _manifest(path: Path) -> Manifest | None:
    file = path / MANIFEST
    return parse(Manifest, file.read_bytes(), str(file)) if path.is_dir() and file.is_file() else None
