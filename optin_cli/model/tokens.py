"""Tokens as units: they merge between the blocks of a stack, so that later blocks have fewer to compute.

The tokens of a block are a group like its heads: `encoder.3.token` has as many units as the whole sequence has tokens
that may merge, and a unit is that share of the tokens that reach block 3. So blocks do not depend on each other: a
group that keeps 48 of 64 units passes on three quarters of its tokens, rounded up, however many they are.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from optin_cli.artifacts.costs import TOKEN, merges_at
from optin_cli.errors import ArtifactError
from optin_cli.model.blocks import FoundStack
from optin_cli.model.forward import call_model, hooks
from optin_cli.model.lookup import attribute_at
from optin_cli.model.modeling_optin import merge_between, merged_at, spread_tokens
from optin_cli.model.plan import Merge, Plan
from optin_cli.model.structure import Structure
from optin_cli.model.units import Group, Keeping, Positions, UnitKind


@dataclass(frozen=True)
class Merged(Positions):
    """Where tokens are once some have merged.

    sizes: (rows, tokens), original tokens in each. source: (rows, original tokens), where each is among `tokens`.
    """

    sizes: torch.Tensor
    source: torch.Tensor

    def spread(self, hidden: torch.Tensor) -> torch.Tensor:
        """Copy to each original token the hidden state of the one that it merged into."""
        return spread_tokens(hidden, self.source)

    def average(self, hidden: torch.Tensor) -> torch.Tensor:
        """Mean hidden state of the original tokens that merged into each."""
        place = self.source[:, :, None].expand(-1, -1, hidden.shape[-1])
        total = hidden.new_zeros((*self.sizes.shape, hidden.shape[-1])).scatter_add(1, place, hidden)
        mean: torch.Tensor = total / self.sizes[:, :, None]
        return mean


@dataclass(frozen=True)
class Tokens(UnitKind):
    """The sequence that runs through a stack of blocks.

    blocks: (name, path) in order. special: tokens at the start that never merge. argument: of a block's forward, what
    is added to attention scores. length, width: tokens of the whole sequence, special ones included, and hidden size;
    0 where no input of the model has been seen. dense: outputs that have a value for every token or pixel.
    """

    blocks: tuple[tuple[str, str], ...]
    special: int
    argument: str
    length: int = 0
    width: int = 0
    dense: tuple[str, ...] = ()

    @property
    def mergeable(self) -> int:
        """Tokens of the whole sequence that may merge."""
        return self.length - self.special

    @property
    def block_of(self) -> dict[str, str]:
        """The block behind which tokens merge, by group name; merging behind the last one would save nothing."""
        return {f"{name}.{TOKEN}": name for name, _ in self.blocks[:-1]} if self.mergeable > 1 else {}

    @property
    def units(self) -> dict[str, int]:
        """Number of units by group name, which is the same for all."""
        return dict.fromkeys(self.block_of, self.mergeable)

    def counts(self, kept: Keeping) -> list[int]:
        """How many tokens merge behind each block; none where a group is not named."""
        names = [f"{name}.{TOKEN}" for name, _ in self.blocks]
        whole = self.mergeable
        return merges_at([len(kept[name]) if name in kept else whole for name in names], whole)

    @contextlib.contextmanager
    def masked(self, model: nn.Module, kept: Keeping) -> Iterator[None]:
        """Merge tokens between the blocks as the pruned model does."""
        with hooks() as hook:
            if any(counts := self.counts(kept)):
                blocks = [model.get_submodule(path) for _, path in self.blocks]
                for handle in merge_between(model, blocks, counts, self.special, self.argument):
                    hook.callback(handle.remove)
            yield

    def cut(self, _model: nn.Module, kept: Keeping, root: str) -> tuple[Plan, dict[str, torch.Tensor]]:
        """How many tokens merge behind each block; no weight changes."""
        if not any(counts := self.counts(kept)):
            return Plan(root=root), {}
        paths = [path for _, path in self.blocks]
        merge = Merge(blocks=paths, counts=counts, special=self.special, argument=self.argument)
        return Plan(root=root, merge=merge), {}

    def settings(self, kept: Keeping) -> tuple[dict[str, int | float], list[str]]:
        """No config states that tokens merge."""
        return {}, ["its config has no key for tokens that merge"] if any(self.counts(kept)) else []

    def check(self, kept: Keeping, name: str) -> None:
        """Refuse a mask that passes no token on."""
        for group, block in self.block_of.items():
            if group in kept and not kept[group]:
                raise ArtifactError(
                    f"{name} keeps no unit of {group}, so that no token would go on behind {block}; at least one must.",
                    hint=f"Keep 1 to {self.mergeable} units: how many decides, not which.",
                )

    @torch.no_grad()
    def measured(self, model: nn.Module, inputs: Mapping[str, torch.Tensor], outputs: Sequence[str]) -> Tokens:
        """The same with the length and width of the sequence that an input becomes, and which outputs are dense."""
        shapes: list[torch.Size] = []

        def see(_module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
            shapes.append(arguments[0].shape)

        with hooks() as hook:
            hook.before(model.get_submodule(self.blocks[0][1]), see)
            found = call_model(model, inputs)
        dense = tuple(name for name in outputs if found[name].dim() > 2)
        return replace(self, length=shapes[0][1], width=shapes[0][2], dense=dense)

    def changes(self, kept: Keeping, group: Group) -> bool:
        """Whether tokens have merged before the block of a group."""
        names = [name for name, _ in self.blocks]
        return group.block in names and any(self.counts(kept)[: names.index(group.block)])

    def positions(self, block: nn.Module) -> Merged | None:
        """Where tokens are in the running pass."""
        merged = merged_at(block)
        return None if merged is None else Merged(*merged)

    @contextlib.contextmanager
    def choices(self, model: nn.Module) -> Iterator[list[torch.Tensor]]:
        """Collect, of each pass in which tokens merge, where each original token is at the last block: (rows, tokens).

        Which tokens are most alike is a choice: where two pairs are equally so, rounding makes it.
        """
        sources: list[torch.Tensor] = []

        def see(module: nn.Module, _arguments: object) -> None:
            if (merged := self.positions(module)) is not None:
                sources.append(merged.source)

        with hooks() as hook:
            hook.before(model.get_submodule(self.blocks[-1][1]), see)
            yield sources


def tokens_of(structure: Structure) -> Tokens | None:
    """The tokens of a structure; None where its description does not let them merge."""
    return next((kind for kind in structure.kinds if isinstance(kind, Tokens)), None)


def find_tokens(model: nn.Module, stacks: Sequence[FoundStack], root: str, _problems: list[str]) -> Tokens | None:
    """The first stack whose tokens may merge; None where there is none, or its blocks take no mask."""
    for stack in stacks:
        rule, blocks = stack.rule.tokens, tuple((name, place.path) for name, place in stack.places.items())
        if rule is None or len(blocks) < 2:
            continue
        taken = (inspect.signature(model.get_submodule(path).forward).parameters for _, path in blocks)
        if not all(rule.argument in parameters for parameters in taken):
            continue
        special = 0
        for path in rule.special:
            found = attribute_at(model, f"{root}.{path}".strip("."))
            special += found.shape[1] if isinstance(found, torch.Tensor) else 0
        return Tokens(blocks, special, rule.argument)
    return None


def cluster_means(hidden: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """Hidden states (rows, tokens, width), each the mean over all tokens of the same place (rows, tokens)."""
    index = place[:, :, None].expand_as(hidden)
    means = torch.zeros_like(hidden).scatter_reduce(1, index, hidden, "mean", include_self=False)
    return means.gather(1, index)
