"""Running sums of per-sample importances, and the state from which an interrupted run is resumed.

Sums are float64 and taken in the order of the jobs, so an interrupted and resumed run ends in the same bits as an
uninterrupted one. Beside them a run may sum tensors of its own, such as second moments, which are saved with the state.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from optin_cli.artifacts.base import Options, Source, Workload
from optin_cli.data.batch import Batch
from optin_cli.errors import ArtifactError, CheckpointError
from optin_cli.files import atomic_file, parse_json
from optin_cli.model.structure import Structure
from optin_cli.progress import Progress
from optin_cli.version import __version__

SMALL_STATE = 1 << 20
"""Bytes of a state that is saved after every job."""
SAVE_EVERY = 5.0
"""Least seconds between two savings of a larger one."""
SAVE_SHARE = 0.05
"""Most of the time that may go into saving it."""
EXTRA = "extra"
MOST_SAMPLES = 1 << 53
"""No count is larger, so that floating point holds it."""


@dataclass(frozen=True)
class Job:
    """A part of a run: the importances (rows, units) by group name of some samples; weight: its share of the work."""

    what: str
    weight: float
    run: Callable[[], Mapping[str, torch.Tensor]]


@dataclass(frozen=True)
class RunIdentity:
    """Everything that the sums of a run depend on.

    what: which of several states of the same run this is. structure: of the model that is scored: its groups, as the
    architecture description places them. inputs: checkpoint, calibration data and, where it is an own one, the
    architecture description. workload: what the recorded costs are of. batches: all calibration batches, since the hash
    of the data does not cover the tokenizer and the preprocessing.
    """

    what: str
    structure: Structure
    options: Options
    inputs: Mapping[str, Source]
    workload: Workload
    batches: Sequence[Batch]

    def fingerprint(self) -> str:
        """Hash of it and of the version of optin."""
        parts = {
            "what": self.what,
            "version": __version__,
            "structure": repr(self.structure),
            "options": self.options,
            "inputs": {role: source.published.model_dump() for role, source in self.inputs.items()},
            "workload": self.workload.model_dump(),
            "batches": [_digest(batch) for batch in self.batches],
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _digest(batch: Batch) -> str:
    """Hash of a batch's keys and tensors."""
    digest = hashlib.sha256(repr((batch.keys, batch.paired)).encode())
    labels = {} if batch.labels is None else {"labels": batch.labels}
    for name, tensor in {**batch.inputs, **labels}.items():
        digest.update(repr((name, tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class NotFiniteError(CheckpointError):
    """Scores that are no numbers, as a resumed run would find too."""


def require_finite(scores: Mapping[str, torch.Tensor]) -> None:
    """Refuse what a scores file cannot hold, float32 numbers by name of a group or module (NotFiniteError)."""
    for name, values in scores.items():
        if not bool(torch.isfinite(values.float()).all()):
            raise NotFiniteError(
                f"The scores of {name} are not finite: weights or activations there are too large for 32 bits.",
                hint="Look for outliers in the weights of that block and those before it.",
            )


@dataclass(frozen=True)
class SavedState:
    """The file in which an interrupted run leaves its sums, and whether to resume from it. No path: nothing is kept."""

    path: Path | None = None
    resume: bool = False

    def part(self, name: str) -> SavedState:
        """The state of a part of the run, in a file beside this one."""
        path = None if self.path is None else self.path.with_name(f"{self.path.name}.{name}")
        return replace(self, path=path)


def run_jobs(
    jobs: Sequence[Job],
    identity: RunIdentity,
    state: SavedState,
    progress: Progress,
    extra: Mapping[str, torch.Tensor] | None = None,
) -> Accumulator:
    """Add up the importances of all jobs, saving the state after each, or every few seconds where it is large.

    Args:
        extra: tensors that the jobs add to in place, saved and resumed with the sums.

    Raises:
        ArtifactError: another run left the state that is to be resumed.
    """
    totals, fingerprint = Accumulator(extra), ""
    if state.path is not None:
        fingerprint = identity.fingerprint()
        if state.resume and state.path.exists():
            totals = Accumulator.load(state.path, fingerprint, extra)
            units = {group.name: group.units for group in identity.structure.groups}  # others sum something else
            for name, tensor in totals.sums.items():
                if name in units and tensor.shape != (units[name],):
                    raise ArtifactError(
                        f"{state.path} is not the state of an interrupted run: it has {tensor.numel()} sums of {name}."
                    )
    whole = sum(job.weight for job in jobs)
    finished = sum(job.weight for job in jobs[: totals.done])
    due = 0.0
    for job in jobs[totals.done :]:
        progress.update(finished, whole, job.what)
        totals.add(job.run())
        finished += job.weight
        if state.path is not None and (time.monotonic() >= due or totals.done == len(jobs)):
            start = time.monotonic()
            totals.save(state.path, fingerprint)
            if totals.size > SMALL_STATE:
                due = time.monotonic() + max(SAVE_EVERY, (time.monotonic() - start) / SAVE_SHARE)
    if jobs:
        progress.update(whole, whole, "done")
    return totals


class Accumulator:
    """Sum, sum of squares and count of per-sample importances, by group.

    extra: tensors that jobs sum on their own, by name.
    """

    def __init__(self, extra: Mapping[str, torch.Tensor] | None = None) -> None:
        self.done = 0
        self.sums: dict[str, torch.Tensor] = {}
        self.squares: dict[str, torch.Tensor] = {}
        self.counts: dict[str, int] = {}
        self.extra = extra or {}

    @property
    def size(self) -> int:
        """Bytes of all sums."""
        return sum(tensor.nbytes for part in (self.sums, self.squares, self.extra) for tensor in part.values())

    def add(self, values: Mapping[str, torch.Tensor]) -> None:
        """Take in one job's (rows, units) importances by group name."""
        for name, rows in values.items():
            wide = rows.double()
            self.sums[name] = self.sums.get(name, 0.0) + wide.sum(dim=0)
            self.squares[name] = self.squares.get(name, 0.0) + wide.square().sum(dim=0)
            self.counts[name] = self.counts.get(name, 0) + rows.shape[0]
        self.done += 1

    def mean(self, name: str) -> torch.Tensor:
        """Mean importance over samples: (units,)."""
        return self.sums[name] / self.counts[name]

    def standard_error(self, name: str) -> torch.Tensor:
        """Standard error of that mean: (units,); zero for a single sample."""
        count = self.counts[name]
        variance = (self.squares[name] / count - self.mean(name).square()).clamp(min=0.0)
        return (variance / max(count - 1, 1)).sqrt()

    def save(self, path: Path, fingerprint: str) -> None:
        """Write the state; `fingerprint` (of `RunIdentity`) binds it to the run."""
        parts = {"sum": self.sums, "square": self.squares, EXTRA: self.extra}
        tensors = {f"{role}.{name}": tensor for role, part in parts.items() for name, tensor in part.items()}
        metadata = {"fingerprint": fingerprint, "done": str(self.done), "counts": json.dumps(self.counts)}
        with atomic_file(path, force=True) as temporary:
            save_file(tensors, temporary, metadata=metadata)

    @classmethod
    def load(cls, path: Path, fingerprint: str, extra: Mapping[str, torch.Tensor] | None = None) -> Accumulator:
        """Read a state, and set the tensors of `extra` to what they had come to.

        Raises:
            ArtifactError: it is unreadable, or of another run.
        """
        state = cls(extra)
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
            found = metadata["fingerprint"]
            state.done, state.counts = int(metadata["done"]), parse_json(metadata["counts"])
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise ArtifactError(f"{path} is not the state of an interrupted run: {error}.") from error
        if found != fingerprint:
            raise ArtifactError(
                f"{path} was left by a run with other options, data or checkpoint, or by another version of optin.",
                hint="Repeat the interrupted command exactly, or leave out --resume to start over.",
            )
        for key, tensor in tensors.items():
            role, _, name = key.partition(".")
            if role == EXTRA and name in state.extra and state.extra[name].shape == tensor.shape:
                state.extra[name].copy_(tensor)
            elif role in ("sum", "square"):
                (state.sums if role == "sum" else state.squares)[name] = tensor
            else:
                raise ArtifactError(f"{path} is not the state of an interrupted run: {key} is of no use in this one.")
        if (fault := state.fault()) is not None:
            raise ArtifactError(f"{path} is not the state of an interrupted run: {fault}.")
        return state

    def fault(self) -> str | None:
        """What no run leaves; None where sums, squares and counts belong together."""
        if self.done < 0 or not isinstance(self.counts, dict):
            return "it does not say how far it came"
        if not self.sums.keys() == self.squares.keys() == self.counts.keys():
            return "its sums, squares and counts are of different groups"
        for name, count in self.counts.items():
            if type(count) is not int or not 0 < count < MOST_SAMPLES:
                return f"the count of {name} is {count!r:.40}"
            if self.sums[name].shape != self.squares[name].shape or self.sums[name].dtype != torch.float64:
                return f"the sums of {name} are {self.sums[name].dtype} of shape {tuple(self.sums[name].shape)}"
            if not bool(torch.isfinite(self.sums[name]).all() and torch.isfinite(self.squares[name]).all()):
                return f"the sums of {name} are not finite"
        return None
