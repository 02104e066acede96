"""What artifacts say of tokens that merge: how costs follow the length of a sequence, and what tokens are worth.

Nothing here imports torch, so that stages without a model (search, inspect) start at once.
"""

from __future__ import annotations

from optin_cli.records import Frozen


class BlockCost(Frozen):
    """MACs of a block over the whole sequence, and those of them that grow with the square of its length."""

    macs: float
    square: float


class TokenCosts(Frozen):
    """How costs follow the length of a sequence whose tokens merge between blocks.

    length: tokens of a whole sequence, of which `special` never merge. width: numbers a token has. blocks: in order, by
    name. unit_square: by group name, the MACs of a unit that grow with the square of the length.
    """

    length: int
    special: int
    width: int
    blocks: dict[str, BlockCost]
    unit_square: dict[str, float]


class TokenExchange(Frozen):
    """What importance of units and of tokens is worth once refit has run, measured at a share of the MACs.

    units_lost, tokens_lost: the importance that a mask of units alone, and of tokens alone, loses at that share.
    units_distance, tokens_distance: how far each of the two models, cut and refitted, is from the original. rate: of
    the distance per importance of tokens to that of units, by which tokens' importances were multiplied.
    """

    share: float
    units_lost: float
    units_distance: float
    tokens_lost: float
    tokens_distance: float
    rate: float
