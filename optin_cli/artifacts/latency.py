"""The latency artifact: measured time of each group at a few sizes, and the latency budget that search uses.

Time is piecewise linear between the measured numbers of kept units. Because measurements are noisy, times that fall
with more units are averaged with their neighbours until none does (isotonic regression), so that search never pays
for removing units.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from optin_cli.artifacts.base import MOST_UNITS, Artifact, Frozen, Vector64, Workload, timed_on

MOST_LEVELS = 128
"""Up to how many counts of kept units of a group a latency budget is searched over; larger groups go in steps."""


MOST_MS = 1e9
"""Longest time that is believed: twelve days."""
Milliseconds = Annotated[float, Field(ge=-MOST_MS, le=MOST_MS)]
Units = Annotated[int, Field(ge=0, le=MOST_UNITS)]


class Ladder(Frozen):
    """Milliseconds that a group's kept units add over the fewest measured; both lists ascend in units."""

    units: list[Units] = Field(min_length=1)
    ms: list[Milliseconds]

    @model_validator(mode="after")
    def _check(self) -> Ladder:
        if len(self.units) != len(self.ms):
            raise ValueError(f"{len(self.units)} counts of units have {len(self.ms)} times")
        if self.units[0] < 0 or any(low >= high for low, high in zip(self.units, self.units[1:], strict=False)):
            raise ValueError("counts of units must be ascending")
        return self

    def curve(self) -> Vector64:
        """Milliseconds of 0, 1, … units, (units + 1,): non-decreasing, starting at 0."""
        rising = isotonic(np.array(self.ms))
        counts = np.arange(self.units[-1] + 1)
        found: Vector64 = np.interp(counts, self.units, rising - rising[0])
        return found


class LatencyTable(Artifact):
    """`optin profile --latency`: time of the whole model, and of each group at a few sizes, on one device.

    workload: the timed inputs. device, threads, versions: what timed them. total_ms: time of the whole model.
    """

    kind: ClassVar[str] = "latency"
    needs: ClassVar[tuple[str, ...]] = ("checkpoint",)
    schema_: Literal["optin.latency/1"] = Field(default="optin.latency/1", alias="schema")
    workload: Workload
    device: str
    threads: int = Field(ge=1)
    total_ms: float = Field(gt=0, le=MOST_MS)
    groups: dict[str, Ladder]
    versions: dict[str, str]

    @property
    def timed_on(self) -> str:
        """The device and, of a CPU, its threads, in words."""
        return timed_on(self.device, self.threads)

    def curves(self) -> dict[str, Vector64]:
        """Share of the whole model's time taken by 0, 1, … units of each group."""
        return {name: ladder.curve() / self.total_ms for name, ladder in self.groups.items()}

    def reached(self, counts: Mapping[str, int]) -> float:
        """Predicted share of the whole model's time that remains with these counts of kept units; other groups stay."""
        curves = {name: curve for name, curve in self.curves().items() if name in counts}
        return 1.0 - sum(float(curve[-1] - curve[counts[name]]) for name, curve in curves.items())


def isotonic(values: Vector64) -> Vector64:
    """Isotonic regression by pooling adjacent violators: the nearest non-decreasing sequence in least squares."""
    pools: list[tuple[float, int]] = []
    for value in values:
        mean, size = float(value), 1
        while pools and pools[-1][0] > mean:
            before, count = pools.pop()
            mean, size = (before * count + mean * size) / (count + size), count + size
        pools.append((mean, size))
    return np.concatenate([np.full(size, mean) for mean, size in pools])


def coarser(levels: list[int]) -> list[int]:
    """Thin out counts to multiples of a power of two when there are more than MOST_LEVELS."""
    step = 1
    while sum(level % step == 0 for level in levels) > MOST_LEVELS:
        step *= 2
    return [level for level in levels if level % step == 0 or level in (levels[0], levels[-1])]
