"""What can be pruned in a model, and what is compared to judge it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from optin_cli.architectures.schema import DecisionRule, EarlierRule, Layout, OutputRule
from optin_cli.model.embeddings import Embedding
from optin_cli.model.units import Group, Keeping, Positions, UnitKind


@dataclass(frozen=True)
class Block:
    """A layer, whose output is a point of the trajectory: its path and that output's layout."""

    name: str
    path: str
    layout: Layout


@dataclass(frozen=True)
class Structure:
    """Blocks, outputs and kinds of units of a model.

    root: path of the base model in it ("" if it is that itself). decisions: modules and items of what they return that
    are decided by comparing numbers (`schema.DecisionRule`), by full path. earlier: what earlier versions of the
    library called its modules, by full path too. embedding: how hidden states become that of a sentence, where they
    are used so.
    """

    family: str
    root: str
    blocks: tuple[Block, ...]
    outputs: tuple[OutputRule, ...]
    kinds: tuple[UnitKind, ...]
    decisions: tuple[DecisionRule, ...] = ()
    earlier: EarlierRule | None = None
    embedding: Embedding = field(default_factory=Embedding, compare=False)

    @functools.cached_property
    def groups(self) -> tuple[Group, ...]:
        """Groups whose units are slices of weights."""
        return tuple(group for kind in self.kinds for group in kind.sliced)

    @property
    def units(self) -> dict[str, int]:
        """Number of units by group name, of all kinds."""
        return {name: units for kind in self.kinds for name, units in kind.units.items()}

    def group(self, name: str) -> Group:
        """The sliced group of that name (KeyError if there is none)."""
        return {g.name: g for g in self.groups}[name]

    def with_groups(self, groups: Iterable[Group]) -> Structure:
        """The same with other sliced groups."""
        chosen = tuple(groups)
        return replace(self, kinds=tuple(kind.with_groups(chosen) for kind in self.kinds))

    def measured(self, model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> Structure:
        """The same with what only a forward pass shows, such as the length of the sequence."""
        names: Sequence[str] = [rule.name for rule in self.outputs]
        return replace(self, kinds=tuple(kind.measured(model, inputs, names) for kind in self.kinds))

    def dropped(self, kept: Keeping) -> tuple[str, ...]:
        """Names of the blocks that a mask removes as a whole."""
        return tuple(name for kind in self.kinds for name in kind.dropped(kept))

    def within_blocks(self, kept: Keeping) -> Keeping:
        """A mask without what it says of units inside blocks that it removes as a whole."""
        inside = tuple(f"{block}." for block in self.dropped(kept))
        own = {name for kind in self.kinds if kind.dropped(kept) for name in kind.units}
        return {name: units for name, units in kept.items() if name in own or not name.startswith(inside)}

    def changes(self, kept: Keeping, group: Group) -> bool:
        """Whether a mask removes units of a group, or changes what reaches it within its block."""
        return any(kind.changes(kept, group) for kind in self.kinds)

    def positions(self, block: nn.Module) -> Positions:
        """Positions of the whole sequence in the running pass at a block (see `UnitKind.positions`)."""
        found = (kind.positions(block) for kind in self.kinds)
        return next((positions for positions in found if positions is not None), Positions())

    @contextlib.contextmanager
    def choices(self, model: nn.Module) -> Iterator[list[torch.Tensor]]:
        """Collect what forward passes decide by comparing numbers (see `UnitKind.choices`); for `alike_rows`."""
        found: list[torch.Tensor] = []
        with contextlib.ExitStack() as stack:
            collected = [stack.enter_context(kind.choices(model)) for kind in self.kinds]
            yield found
            found += [choice for part in collected for choice in part]


def alike_rows(mine: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> torch.Tensor | slice:
    """Rows in which two passes made the same `choices` (rows, …); all if none were made, or no row is the same."""
    same = [(a == b).flatten(1).all(dim=1).cpu() for a, b in zip(mine, theirs, strict=False)]
    if not same:
        return slice(None)
    alike = torch.stack(same).all(dim=0)
    return alike if bool(alike.any()) else slice(None)
