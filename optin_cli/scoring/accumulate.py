"""Running sums of per-sample importances, and the state from which an interrupted run is resumed.

Sums are float64. Those of a portion of the jobs (`portions.py`) are taken in the order of the jobs, and then added to
those of the portions before it. So a run ends in the same bits whether or not it was interrupted and resumed, and
however many processes shared it. Beside them a run may sum tensors of its own, such as second moments, which are saved
with the state. They take twice their size: the sums of the portion in progress lie beside those before it.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from optin_cli.artifacts.base import Options, Source, Workload
from optin_cli.artifacts.tensor_files import require_few_axes
from optin_cli.data.batch import Batch
from optin_cli.errors import ArtifactError, CheckpointError
from optin_cli.files import atomic_file, parse_json
from optin_cli.model.structure import Structure
from optin_cli.processes.portions import cut_portions
from optin_cli.processes.processes import ALONE, Processes, Sending
from optin_cli.progress import Progress
from optin_cli.version import __version__

SMALL_STATE = 1 << 20
"""Bytes of a state that is saved after every job."""
SAVE_EVERY = 10.0
"""Least seconds between two savings of a larger one."""
SAVE_SHARE = 0.02
"""Most of the time that may go into saving it."""
EXTRA = "extra"
OPEN = "open."
"""What the names of sums of the portion in progress begin with."""
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
            "batches": [batch.fingerprint() for batch in self.batches],
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


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


@dataclass
class Sums:
    """A run's sums: of the portions that are finished, and of the one in progress, which jobs add to.

    due: when they may next be saved, of a clock that never goes back; of large ones not at once.
    """

    totals: Accumulator
    portion: Accumulator
    state: SavedState
    fingerprint: str
    due: float = 0.0

    @classmethod
    def begun(
        cls, state: SavedState, identity: RunIdentity, extra: Mapping[str, torch.Tensor], portions: Sequence[range]
    ) -> Sums:
        """None yet, or those of the state that is to be resumed (ArtifactError if another run left it)."""
        held = {name: torch.zeros(tensor.shape, dtype=tensor.dtype) for name, tensor in extra.items()}
        totals, portion = Accumulator(held), Accumulator(extra)
        fingerprint = "" if state.path is None else identity.fingerprint()
        if state.path is not None and state.resume and state.path.exists():
            totals = Accumulator.load(state.path, fingerprint, held, portion)
            require_run(totals, portion, identity.structure, portions, str(state.path))
        due = time.monotonic() + SAVE_EVERY if totals.size > SMALL_STATE else 0.0
        return cls(totals, portion, state, fingerprint, due)

    def save(self, *, last: bool = False) -> None:
        """Save them, if there is a state and it is time to; the last ones always are."""
        if self.state.path is None or not (last or time.monotonic() >= self.due):
            return
        start = time.monotonic()
        self.totals.save(self.state.path, self.fingerprint, self.portion)
        if self.totals.size > SMALL_STATE:
            self.due = time.monotonic() + max(SAVE_EVERY, (time.monotonic() - start) / SAVE_SHARE)


def require_run(
    totals: Accumulator, portion: Accumulator, structure: Structure, portions: Sequence[range], path: str
) -> None:
    """Refuse sums that are not of the groups and portions of a run (ArtifactError)."""
    units = {group.name: group.units for group in structure.groups}  # others sum something else
    for name, tensor in (*totals.sums.items(), *portion.sums.items()):
        if name in units and tensor.shape != (units[name],):
            raise ArtifactError(
                f"{path} is not the state of an interrupted run: it has {tensor.numel()} sums of {name}."
            )
    lengths = {each.start: len(each) for each in portions} | {portions[-1].stop if portions else 0: 1}
    if portion.done >= lengths.get(totals.done, 0):
        raise ArtifactError(f"{path} is not the state of an interrupted run: it does not say how far it came.")


def run_jobs(
    jobs: Sequence[Job],
    identity: RunIdentity,
    state: SavedState,
    progress: Progress,
    extra: Mapping[str, torch.Tensor] | None = None,
    processes: Processes = ALONE,
) -> Accumulator:
    """Add up the importances of all jobs, saving the state after each, or every few seconds where it is large.

    Processes take portions of the jobs in turn. The sums go round from one to the next, each of which adds its own, and
    at the end all have them. The first process saves them each time they come by.

    Args:
        extra: tensors that the jobs add to in place, saved and resumed with the sums.

    Raises:
        ArtifactError: another run left the state that is to be resumed. UsageError: there are too many processes.
    """
    portions = cut_portions([job.weight for job in jobs], processes.count)
    extra = extra or {}
    sums = Sums.begun(state if processes.leads else SavedState(), identity, extra, portions)
    begun = processes.share(sums.totals.done)
    turns = [each for each in portions if each.start >= begun]
    todo = [job for each in turns[processes.rank :: processes.count] for job in jobs[each.start : each.stop]]
    finished = sum(job.weight for job in jobs[: begun + sums.portion.done])
    whole = sum(job.weight for job in (*jobs[:begun], *todo))
    sending = Sending()
    for turn, each in enumerate(turns):
        if turn % processes.count != processes.rank:
            continue
        for number in each[sums.portion.done :]:
            progress.update(finished, whole, jobs[number].what)
            values = jobs[number].run()
            sums.portion.add(values)
            progress.count(max((len(rows) for rows in values.values()), default=0))
            finished += jobs[number].weight
            if sums.totals.done == each.start and number + 1 < each.stop:  # else the sums before it are elsewhere
                sums.save()
        sending.wait()
        if processes.count > 1 and turn > 0:
            sums.totals.receive(processes, (turn - 1) % processes.count)
        sums.totals.take(sums.portion)
        sums.save(last=each is turns[-1] and processes.count == 1)
        if processes.count > 1 and each is not turns[-1]:
            sending = sums.totals.send(processes, (turn + 1) % processes.count)
    sending.wait()
    if processes.count > 1:
        sums.totals.copy(processes, max(len(turns) - 1, 0) % processes.count)
        sums.save(last=True)
    for name, tensor in extra.items():
        tensor.copy_(sums.totals.extra[name])
    if jobs:
        progress.update(whole, whole, "averaging")
    return sums.totals


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

    def take(self, portion: Accumulator) -> None:
        """Add the sums of a portion, and set those to zero."""
        for mine, theirs in ((self.sums, portion.sums), (self.squares, portion.squares)):
            for name, tensor in theirs.items():
                mine[name] = mine.get(name, 0.0) + tensor
            theirs.clear()
        for name, count in portion.counts.items():
            self.counts[name] = self.counts.get(name, 0) + count
        for name, tensor in portion.extra.items():
            self.extra[name].add_(tensor.cpu())
            tensor.zero_()
        self.done += portion.done
        portion.counts.clear()
        portion.done = 0

    def send(self, processes: Processes, receiver: int) -> Sending:
        """Begin to send them, with all extra tensors on the CPU; they must stay as they are until that is done."""
        return processes.send(self._small(), [*self.extra.values()], receiver)

    def receive(self, processes: Processes, sender: int) -> None:
        """Become what another process sends."""
        self._become(processes.receive([*self.extra.values()], sender))

    def copy(self, processes: Processes, owner: int) -> None:
        """Become what one of the processes has, on all of them."""
        self._become(processes.share(self._small(), owner))
        processes.copy([*self.extra.values()], owner)

    def _small(self) -> dict[str, Any]:
        return {"done": self.done, "sums": self.sums, "squares": self.squares, "counts": self.counts}

    def _become(self, small: Mapping[str, Any]) -> None:
        self.done, self.sums, self.squares, self.counts = (small[key] for key in ("done", "sums", "squares", "counts"))

    def mean(self, name: str) -> torch.Tensor:
        """Mean importance over samples: (units,)."""
        return self.sums[name] / self.counts[name]

    def standard_error(self, name: str) -> torch.Tensor:
        """Standard error of that mean: (units,); zero for a single sample."""
        count = self.counts[name]
        variance = (self.squares[name] / count - self.mean(name).square()).clamp(min=0.0)
        return (variance / max(count - 1, 1)).sqrt()

    def save(self, path: Path, fingerprint: str, portion: Accumulator | None = None) -> None:
        """Write the state, with the portion in progress; `fingerprint` (of `RunIdentity`) binds it to the run."""
        tensors = self.tensors()
        metadata = {"fingerprint": fingerprint, "done": str(self.done), "counts": json.dumps(self.counts)}
        if portion is not None and portion.done:
            tensors |= {OPEN + name: tensor for name, tensor in portion.tensors().items()}
            metadata |= {f"{OPEN}done": str(portion.done), f"{OPEN}counts": json.dumps(portion.counts)}
        with atomic_file(path, force=True) as temporary:
            save_file(tensors, temporary, metadata=metadata)

    def tensors(self) -> dict[str, torch.Tensor]:
        """All sums that are not zero, by role and name."""
        parts = {"sum": self.sums, "square": self.squares, EXTRA: self.extra if self.done else {}}
        return {f"{role}.{name}": tensor for role, part in parts.items() for name, tensor in part.items()}

    @classmethod
    def load(
        cls,
        path: Path,
        fingerprint: str,
        extra: Mapping[str, torch.Tensor] | None = None,
        portion: Accumulator | None = None,
    ) -> Accumulator:
        """Read a state, and set the tensors of `extra`, and the portion in progress, to what they had come to.

        Raises:
            ArtifactError: it is unreadable, or of another run.
        """
        state, portion = cls(extra), portion or cls()
        try:
            require_few_axes(path)
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
            found = metadata["fingerprint"]
            state.done, state.counts = int(metadata["done"]), parse_json(metadata["counts"])
            portion.done = int(metadata.get(f"{OPEN}done", "0"))
            portion.counts = parse_json(metadata.get(f"{OPEN}counts", "{}"))
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise ArtifactError(f"{path} is not the state of an interrupted run: {error}.") from error
        if found != fingerprint:
            raise ArtifactError(
                f"{path} was left by a run with other options, data or checkpoint, or by another version of optin.",
                hint="Repeat the interrupted command exactly, or leave out --resume to start over.",
            )
        for key, tensor in tensors.items():
            sums = portion if key.startswith(OPEN) else state
            if not sums._put(key.removeprefix(OPEN), tensor):
                raise ArtifactError(f"{path} is not the state of an interrupted run: {key} is of no use in this one.")
        if (fault := state.fault() or portion.fault()) is not None:
            raise ArtifactError(f"{path} is not the state of an interrupted run: {fault}.")
        return state

    def _put(self, key: str, tensor: torch.Tensor) -> bool:
        """Take in a tensor of a state, by its name there; whether it has a place."""
        role, _, name = key.partition(".")
        if role == EXTRA and name in self.extra and self.extra[name].shape == tensor.shape:
            self.extra[name].copy_(tensor)
        elif role in ("sum", "square"):
            (self.sums if role == "sum" else self.squares)[name] = tensor
        else:
            return False
        return True

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
        for name, tensor in self.tensors().items():
            if not bool(torch.isfinite(tensor).all()):
                return f"{name} is not finite"
        return None
