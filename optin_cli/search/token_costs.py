"""Costs of units and of a sequence's tokens in; what a mask under which tokens merge costs out. No model, no torch.

Costs are bilinear: with t of T tokens in a block, a unit of it costs

    linear t / T + square (t / T)^2

and so does what of the block no mask removes. Finding out which tokens are alike costs m^2 / 4 products of the hidden
width for m tokens that may merge.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from optin_cli.artifacts.base import Totals
from optin_cli.artifacts.costs import KIND, GroupCost, TokenCosts, merges_at
from optin_cli.search import budget as spending


def merges(kept: Mapping[str, Sequence[int]], groups: Mapping[str, GroupCost], costs: TokenCosts) -> list[int]:
    """How many tokens merge behind each block under a mask."""
    units = costs.length - costs.special
    left = {group.block: len(kept[name]) for name, group in groups.items() if group.kind == KIND and name in kept}
    return merges_at([left.get(name, units) for name in costs.blocks], units)


def matching_macs(costs: TokenCosts, left: int, count: int) -> int:
    """MACs of choosing `count` tokens to merge of those left that may: at most half in each round."""
    macs = 0
    while count:
        macs += (left + 1) // 2 * (left // 2) * costs.width
        step = min(count, left // 2)
        count, left = count - step, left - step
    return macs


def block_macs(costs: TokenCosts, name: str, length: int) -> float:
    """MACs of a whole block for so many tokens."""
    block, share = costs.blocks[name], length / costs.length
    return (block.macs - block.square) * share + block.square * share**2


def with_merging(
    groups: Mapping[str, GroupCost], totals: Totals, costs: TokenCosts, counts: Sequence[int]
) -> tuple[dict[str, GroupCost], Totals]:
    """Costs of all other groups' units, and of the whole model, with so many tokens merged behind each block."""
    length, macs = costs.length, float(totals.macs)
    shares = {}
    for name, count in zip(costs.blocks, counts, strict=True):
        shares[name] = length / costs.length
        macs += block_macs(costs, name, length) - costs.blocks[name].macs
        macs += matching_macs(costs, length - costs.special, count)
        length -= count
    scaled = {}
    for name, group in groups.items():
        if group.kind == KIND:
            continue
        share, square = shares.get(group.block, 1.0), costs.unit_square.get(name, 0.0)
        unit = (group.unit_macs - square) * share + square * share**2
        scaled[name] = group.model_copy(update={"unit_macs": unit})
    return scaled, totals.model_copy(update={"macs": round(macs)})


def reached(
    kept: Mapping[str, Sequence[int]], groups: Mapping[str, GroupCost], totals: Totals, costs: TokenCosts
) -> dict[str, float]:
    """Shares of the whole model's MACs and parameters that remain under a mask; as `spending.reached`, with tokens."""
    scaled, merged = with_merging(groups, totals, costs, merges(kept, groups, costs))
    found = spending.reached({name: kept[name] for name in scaled}, scaled, merged)
    return {**found, "macs": found["macs"] * merged.macs / totals.macs}


def token_saving(costs: TokenCosts, block: str) -> float:
    """MACs that the first token saves by merging behind a block."""
    names = list(costs.blocks)
    later = names[names.index(block) + 1 :]
    saved = sum(costs.blocks[name].macs - block_macs(costs, name, costs.length - 1) for name in later)
    return saved - matching_macs(costs, costs.length - costs.special, 1)
