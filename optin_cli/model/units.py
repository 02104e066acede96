"""What every kind of prunable unit implements, and groups of units that are slices of weights.

A kind is one class in a module of its own and one row of `resolve.KINDS`: `slices.py` (heads, neurons, channels),
`head_dims.py`, `tokens.py` (tokens that merge between blocks) and `depth.py` (whole blocks). Everything else asks a
structure's kinds through this interface.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from optin_cli.architectures.schema import EmptyRule, SelectRule
from optin_cli.artifacts.costs import GroupCost
from optin_cli.model.config_counts import ConfigCount, Settings
from optin_cli.model.plan import Plan

Keeping = Mapping[str, Sequence[int]]
"""A mask: kept unit indices by group name, ascending. Groups that it does not name stay whole."""


@dataclass(frozen=True)
class Slice:
    """A parameter or buffer of which `axis` is laid out in parts, each of units x its width of a unit.

    widths: entries of a unit in each part.
    """

    parameter: str
    axis: int
    widths: tuple[int, ...]

    @property
    def unit_width(self) -> int:
        """Entries of a unit in all parts together."""
        return sum(self.widths)

    def indices(self, units: int, kept: Sequence[int]) -> torch.Tensor:
        """Positions along `axis` that the kept units, of `units`, occupy: (len(kept) * unit width,)."""
        parts = torch.split(torch.arange(units * self.unit_width), [units * width for width in self.widths])
        return torch.cat([part.reshape(units, -1)[list(kept)].flatten() for part in parts])


@dataclass(frozen=True)
class Norm:
    """A root mean square norm over the columns of all units, by path; unit_width: its columns of a unit."""

    path: str
    unit_width: int


@dataclass(frozen=True)
class Group:
    """One prunable axis of a block: `units` units of `unit_width` columns each, side by side in the consumer's input.

    All paths are full paths in the model. axis: of the consumer's input. rows: its axis of samples. Masking scales the
    input of `gate`, mostly the consumer. inside: what its owner is, where units pass within that. reads: the parameter
    by which the consumer reads units. constant: modules whose MACs do not depend on them. set_each: attributes and how
    much each unit adds to them. config: how the library's config states the number of units; None where it cannot.
    """

    name: str
    kind: str
    block: str
    units: int
    unit_width: int
    axis: int
    consumer: str
    gate: str
    inside: str | None
    reads: str
    residual_sum: str | None
    residual: bool
    rows: int
    least: int
    block_path: str
    slices: tuple[Slice, ...]
    set_units: tuple[str, ...]
    set_width: tuple[str, ...]
    set_each: tuple[tuple[str, int], ...]
    norms: tuple[Norm, ...]
    mixer: str | None
    constant: tuple[str, ...]
    select: tuple[SelectRule, ...]
    attend: str | None
    empty: EmptyRule | None
    config: ConfigCount | None

    def __hash__(self) -> int:
        return hash(self.name)

    @property
    def entry(self) -> str:
        """The module whose input is what the consumer reads."""
        return self.consumer if self.inside is None else self.gate

    @property
    def width(self) -> int:
        """Columns of the consumer's input."""
        return self.units * self.unit_width

    def rows_first(self, tensor: torch.Tensor) -> torch.Tensor:
        """The consumer's input or output with samples on its first axis."""
        return tensor.movedim(self.rows, 0)


class Positions:
    """Where the positions of the whole sequence are among those that a pass still has at some block: here, all are."""

    def spread(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states (rows, positions left, width) copied to every position of the whole sequence."""
        return hidden

    def average(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states of the whole sequence, averaged over those that share a position."""
        return hidden


class UnitKind(ABC):
    """One kind of unit: how it is masked and pruned, and what else depends on it. Masks of other kinds are ignored."""

    @property
    @abstractmethod
    def units(self) -> dict[str, int]:
        """Number of units by group name."""

    @abstractmethod
    def masked(self, model: nn.Module, kept: Keeping) -> contextlib.AbstractContextManager[object]:
        """Run the model as if only the kept units existed."""

    @abstractmethod
    def cut(self, model: nn.Module, kept: Keeping, root: str) -> tuple[Plan, dict[str, torch.Tensor]]:
        """The plan that prunes a model to the kept units, and what is left of its weights by full path."""

    @property
    def sliced(self) -> tuple[Group, ...]:
        """Groups whose units are slices of weights, which consumers read."""
        return ()

    def with_groups(self, groups: Iterable[Group]) -> UnitKind:
        """The same kind with other sliced groups."""
        del groups
        return self

    def measured(self, model: nn.Module, inputs: Mapping[str, torch.Tensor], outputs: Sequence[str]) -> UnitKind:
        """The same kind with what only a forward pass shows."""
        del model, inputs, outputs
        return self

    def costs(self, model: nn.Module, by_module: Mapping[str, float]) -> dict[str, GroupCost]:
        """Costs by group name, where those of units add up. by_module: MACs by path (`costs.count_macs`)."""
        del model, by_module
        return {}

    def settings(self, kept: Keeping) -> tuple[Settings, list[str]]:
        """Keys of the library's config that state a mask, and what of the mask no key states."""
        del kept
        return {}, []

    def check(self, kept: Keeping, name: str) -> None:
        """Refuse a mask that no model can run with (ArtifactError). name: what the message calls the mask."""
        del kept, name

    def dropped(self, kept: Keeping) -> tuple[str, ...]:
        """Names of the blocks that a mask removes as a whole, in order; what else it says of them has no effect."""
        del kept
        return ()

    def changes(self, kept: Keeping, group: Group) -> bool:
        """Whether a mask removes units of a sliced group, or changes what reaches it within its block."""
        del kept, group
        return False

    def positions(self, block: nn.Module) -> Positions | None:
        """Positions in the running pass at a block: of its input while it runs, then of its output. None if whole."""
        del block
        return None

    def choices(self, model: nn.Module) -> contextlib.AbstractContextManager[list[torch.Tensor]]:
        """Collect what forward passes decide by comparing numbers, (rows, …): rounding may decide ties otherwise."""
        del model
        return contextlib.nullcontext([])
