"""Per-sample importances in; running sums, means and standard errors out; and the state a resumed run starts from.

Sums are float64 and taken in the canonical order of the jobs, so an interrupted and resumed run ends in the
same bits as an uninterrupted one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from optin_cli.errors import ArtifactError
from optin_cli.files import atomic_file


class Accumulator:
    """Sum, sum of squares and count of per-sample importances, by group."""

    def __init__(self) -> None:
        self.done = 0
        self.sums: dict[str, torch.Tensor] = {}
        self.squares: dict[str, torch.Tensor] = {}
        self.counts: dict[str, int] = {}

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
        """Write the state; `fingerprint` binds it to the run's options and inputs."""
        tensors = {f"sum.{k}": v for k, v in self.sums.items()} | {f"square.{k}": v for k, v in self.squares.items()}
        metadata = {"fingerprint": fingerprint, "done": str(self.done), "counts": json.dumps(self.counts)}
        with atomic_file(path, force=True) as temporary:
            save_file(tensors, temporary, metadata=metadata)

    @classmethod
    def load(cls, path: Path, fingerprint: str) -> Accumulator:
        """Read a state.

        Raises:
            ArtifactError: it is unreadable, or of a run with other options or inputs.
        """
        state = cls()
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
            found = metadata["fingerprint"]
            state.done, state.counts = int(metadata["done"]), json.loads(metadata["counts"])
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise ArtifactError(f"{path} is not the state of an interrupted run: {error}.") from error
        if found != fingerprint:
            raise ArtifactError(
                f"{path} was left by a run with other options, data or checkpoint.",
                hint="Repeat the interrupted command exactly, or leave out --resume to start over.",
            )
        for key, tensor in tensors.items():
            role, _, name = key.partition(".")
            (state.sums if role == "sum" else state.squares)[name] = tensor
        return state
