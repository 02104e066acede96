"""Costs of a sequence whose tokens merge between blocks. No model, no torch.

With t of T tokens in a block, a unit of it costs

    linear t / T + square (t / T)^2

and so does the part of the block that no mask removes. Finding out which tokens are alike costs m^2 / 4 products of
hidden states for m tokens that may merge.
"""

from optin_cli.artifacts.costs import TokenCosts


def matching_macs(costs: TokenCosts, left: int, count: int) -> int:
    """MACs of choosing `count` tokens to merge of those left that may: at most half in each round."""
    macs = 0
    while count:
        macs += (left + 1) // 2 * (left // 2) * costs.width
        step = min(count, left // 2)
        count, left = count - step, left - step
    return macs


def block_macs(costs: TokenCosts, name: str, length: int) -> float:
    """MACs of a whole block for a sequence of some length."""
    block, share = costs.blocks[name], length / costs.length
    return (block.macs - block.square) * share + block.square * share**2


def token_saving(costs: TokenCosts, block: str) -> float:
    """MACs that the first token saves by merging behind a block."""
    names = list(costs.blocks)
    later = names[names.index(block) + 1 :]
    saved = sum(costs.blocks[name].macs - block_macs(costs, name, costs.length - 1) for name in later)
    return saved - matching_macs(costs, costs.length - costs.special, 1)
