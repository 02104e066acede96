"""Measure how the MACs of blocks and units depend on the length of a sequence whose tokens may merge.

    MACs(t) = linear t / T + square (t / T)^2

for t of T tokens: the products of attention grow with the square. Both parts are measured, by counting at two lengths.
"""

from collections.abc import Mapping

import torch
from torch import nn

from optin_cli.artifacts.costs import BlockCost, TokenCosts
from optin_cli.model.costs import count_macs, unit_macs
from optin_cli.model.masking import masked
from optin_cli.model.structure import Structure
from optin_cli.model.tokens import Tokens


def measure_token_costs(
    model: nn.Module, structure: Structure, tokens: Tokens, inputs: Mapping[str, torch.Tensor]
) -> TokenCosts:
    """Count MACs as the model is, and with half of its tokens merged behind the first block, which always sees all."""
    _, whole = count_macs(model, inputs)
    merged = max(tokens.mergeable // 2, 1)
    with masked(model, structure, {next(iter(tokens.units)): range(merged, tokens.mergeable)}):
        _, short = count_macs(model, inputs)
    share = (tokens.length - merged) / tokens.length

    def square(long: float, less: float) -> float:
        """MACs that grow with the square, of `long` for the whole sequence and `less` for the shorter one."""
        return float(round((long * share - less) / (share - share**2)))

    first, blocks, units = tokens.blocks[0][0], {}, {}
    for name, path in tokens.blocks:
        macs = whole.get(path, 0.0)
        blocks[name] = BlockCost(macs=macs, square=0.0 if name == first else square(macs, short.get(path, 0.0)))
    for group in structure.groups:
        if group.block in blocks:
            long, less = (unit_macs(model, group, counted) * group.units for counted in (whole, short))
            units[group.name] = 0.0 if group.block == first else square(long, less) / group.units
    return TokenCosts(
        length=tokens.length, special=tokens.special, width=tokens.width, blocks=blocks, unit_square=units
    )
