"""Measured times of a model's groups in, as a file; a latency budget for the search out. No torch.

A group's time is known for a few numbers of kept units and piecewise linear in between. Measurements are noisy, so a
time that falls with more units is averaged with its neighbours until none does (isotonic regression): the search
then never pays for removing units.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from optin_cli.artifacts.base import Artifact, Frozen, Workload

Vector = NDArray[np.float64]


MOST_LEVELS = 128
"""Up to how many counts of kept units of a group a latency budget is searched over; larger groups go in steps."""


class Ladder(Frozen):
    """Milliseconds that so many kept units of a group take, beyond those of the fewest: both ascending in units."""

    units: list[int] = Field(min_length=1)
    ms: list[float]

    @model_validator(mode="after")
    def _check(self) -> Ladder:
        if len(self.units) != len(self.ms):
            raise ValueError(f"{len(self.units)} counts of units have {len(self.ms)} times")
        if self.units[0] < 0 or any(low >= high for low, high in zip(self.units, self.units[1:], strict=False)):
            raise ValueError("counts of units must be ascending")
        if not all(math.isfinite(ms) for ms in self.ms):
            raise ValueError("times must be finite numbers")
        return self

    def curve(self) -> Vector:
        """Milliseconds of 0, 1, … units, (units + 1,): never falling, from 0."""
        rising = isotonic(np.array(self.ms))
        counts = np.arange(self.units[-1] + 1)
        found: Vector = np.interp(counts, self.units, rising - rising[0])
        return found


class LatencyTable(Artifact):
    """`optin profile --latency`: this device's time of the whole model, and of each group at a few sizes.

    workload: the inputs that were timed. device, threads, versions: what timed them. total_ms: the whole model's.
    """

    kind: ClassVar[str] = "latency"
    schema_: Literal["optin.latency/1"] = Field(default="optin.latency/1", alias="schema")
    workload: Workload
    device: str
    threads: int
    total_ms: float = Field(gt=0)
    groups: dict[str, Ladder]
    versions: dict[str, str]

    def curves(self) -> dict[str, Vector]:
        """Share of the whole model's time that 0, 1, … units of each group take."""
        return {name: ladder.curve() / self.total_ms for name, ladder in self.groups.items()}

    def reached(self, counts: Mapping[str, int]) -> float:
        """Share of the whole model's time that remains, as the table predicts, with so many units kept."""
        return 1.0 - sum(float(curve[-1] - curve[counts[name]]) for name, curve in self.curves().items())


def isotonic(values: Vector) -> Vector:
    """The nearest never falling sequence, by least squares: neighbours that fall are replaced by their mean."""
    pools: list[tuple[float, int]] = []
    for value in values:
        mean, size = float(value), 1
        while pools and pools[-1][0] > mean:
            before, count = pools.pop()
            mean, size = (before * count + mean * size) / (count + size), count + size
        pools.append((mean, size))
    return np.concatenate([np.full(size, mean) for mean, size in pools])


def coarser(levels: list[int]) -> list[int]:
    """Counts in steps of a power of two where there are too many: odd widths are slow, and ladders are coarser."""
    step = 1
    while sum(level % step == 0 for level in levels) > MOST_LEVELS:
        step *= 2
    return [level for level in levels if level % step == 0 or level in (levels[0], levels[-1])]
