"""The blocks of a model between which tokens may merge in; how many there are, and how many merge under a mask, out.

The tokens of a block are a group like its heads: `encoder.3.token` has as many units as the whole sequence has tokens
that may merge, and a unit is one such part of those that reach block 3. So blocks do not depend on each other: a group
that keeps 48 of 64 units lets three quarters of its tokens go on, rounded up, however many they are.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from optin_cli.architectures.schema import TokenRule
from optin_cli.artifacts.costs import merges_at
from optin_cli.model.modeling_optin import MERGED, spread_tokens
from optin_cli.options.scoring import UNITS

KIND = UNITS["tokens"]


@dataclass(frozen=True)
class Tokens:
    """The sequence that runs through a stack of blocks.

    blocks: (name, path) in order. special: tokens at the start that never merge. argument: of a block's forward, what
    is added to attention scores. length, width: tokens of a sequence, special ones included, and the size of each; 0
    where no input of the model has been seen. dense: outputs that say something of every token or pixel.
    """

    blocks: tuple[tuple[str, str], ...]
    special: int
    argument: str
    length: int = 0
    width: int = 0
    dense: tuple[str, ...] = ()

    @property
    def units(self) -> int:
        """Tokens of a whole sequence that may merge."""
        return self.length - self.special

    @property
    def groups(self) -> dict[str, str]:
        """The block behind which tokens merge, by the name of the group; nothing is gained behind the last one."""
        return {f"{name}.{KIND}": name for name, _ in self.blocks[:-1]} if self.units > 1 else {}

    def counts(self, kept: Mapping[str, Sequence[int]]) -> list[int]:
        """How many tokens merge behind each block; none where a group is not named."""
        names = [f"{name}.{KIND}" for name, _ in self.blocks]
        return merges_at([len(kept[name]) if name in kept else self.units for name in names], self.units)


def find_tokens(
    model: nn.Module, rule: TokenRule | None, blocks: Sequence[tuple[str, str]], root: str
) -> Tokens | None:
    """What a description says of tokens, resolved against a model; None where its blocks take no mask."""
    if rule is None or len(blocks) < 2:
        return None
    if any(rule.argument not in inspect.signature(model.get_submodule(path).forward).parameters for _, path in blocks):
        return None
    special = 0
    for path in rule.special:
        owner, _, leaf = f"{root}.{path}".strip(".").rpartition(".")
        try:
            found = getattr(model.get_submodule(owner), leaf, None)
        except AttributeError:
            continue
        special += found.shape[1] if isinstance(found, torch.Tensor) else 0
    return Tokens(tuple(blocks), special, rule.argument)


@torch.no_grad()
def measured(tokens: Tokens, model: nn.Module, inputs: Mapping[str, torch.Tensor], outputs: Sequence[str]) -> Tokens:
    """The same with the length and width of the sequence that an input becomes, and which outputs are dense."""
    shapes: list[torch.Size] = []

    def see(_module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        shapes.append(arguments[0].shape)

    handle = model.get_submodule(tokens.blocks[0][1]).register_forward_pre_hook(see)
    try:
        raw = model(**inputs)
    finally:
        handle.remove()
    found = {"logits": raw} if isinstance(raw, torch.Tensor) else raw
    dense = tuple(name for name in outputs if found[name].dim() > 2)
    return replace(tokens, length=shapes[0][1], width=shapes[0][2], dense=dense)


def merged_as(total: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """`total`, known to hold the same merged tokens as another tensor of the same pass."""
    if (merged := getattr(other, MERGED, None)) is not None:
        setattr(total, MERGED, merged)
    return total


def averaged_as(hidden: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """What the tokens merged in `other`, of another pass over the same input, have in `hidden`, on average."""
    merged = getattr(other, MERGED, None)
    if merged is None:
        return hidden
    sizes, source = merged
    place = source[:, :, None].expand(-1, -1, hidden.shape[-1])
    total = hidden.new_zeros((*sizes.shape, hidden.shape[-1])).scatter_add(1, place, spread_tokens(hidden))
    mean: torch.Tensor = total / sizes[:, :, None]
    return mean


@contextlib.contextmanager
def watching(model: nn.Module, tokens: Tokens | None) -> Iterator[list[torch.Tensor]]:
    """Collect, of each pass, the place that each original token has at the last block: (rows, tokens)."""
    places: list[torch.Tensor] = []

    def see(_module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        if (merged := getattr(arguments[0], MERGED, None)) is not None:
            places.append(merged[1])

    handle = None
    if tokens is not None:
        handle = model.get_submodule(tokens.blocks[-1][1]).register_forward_pre_hook(see)
    try:
        yield places
    finally:
        if handle is not None:
            handle.remove()


def merged_alike(mine: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> torch.Tensor | slice:
    """Rows in which the same tokens merged; all of them where none merge, or none alike.

    Which tokens are most alike is a choice: where two are so equally, rounding makes it.
    """
    if not mine or not theirs:
        return slice(None)
    alike = (mine[0] == theirs[0]).all(dim=1).cpu()
    return alike if bool(alike.any()) else slice(None)


def merged_before(tokens: Tokens | None, kept: Mapping[str, Sequence[int]], block: str) -> bool:
    """Whether under a mask tokens have merged when they reach a block."""
    names = [] if tokens is None else [name for name, _ in tokens.blocks]
    return tokens is not None and block in names and any(tokens.counts(kept)[: names.index(block)])


def cluster_means(hidden: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """Each token's hidden state replaced by the mean over all tokens of the same place.

    Args:
        hidden: (rows, tokens, width). place: (rows, tokens).
    """
    index = place[:, :, None].expand_as(hidden)
    sizes = torch.zeros_like(place, dtype=hidden.dtype).scatter_add(
        1, place, torch.ones_like(place, dtype=hidden.dtype)
    )
    total = torch.zeros_like(hidden).scatter_add(1, index, hidden)
    return (total / sizes.clamp(min=1.0)[:, :, None]).gather(1, index)
