"""What artifacts say of tokens that merge: how costs follow the length of a sequence, and what tokens are worth.

Nothing here imports torch, so that stages without a model (search, inspect) start at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from optin_cli.artifacts.base import Artifact, Frozen, Totals, Workload
from optin_cli.options.scoring import UNITS


class SharedCost(Frozen):
    """What one unit of each of two groups costs in weights that both index."""

    macs: float
    parameters: int


class StockCounts(Frozen):
    """Counts of a group's units that the stock config can state for all blocks: multiples of `step`, 1 or more.

    divisor_of: what they must divide, None for anything.
    """

    step: int = 1
    divisor_of: int | None = None

    def allows(self, count: int) -> bool:
        """Whether the config can state `count` units."""
        fits = count >= 1 and count % self.step == 0
        return fits and (self.divisor_of is None or self.divisor_of % count == 0)

    @property
    def words(self) -> str:
        """What counts must be."""
        multiple = f"multiples of {self.step}" if self.step > 1 else "1 or more"
        return f"counts are {multiple}" + (f" that divide {self.divisor_of}" if self.divisor_of else "")


class GroupCost(Frozen):
    """One prunable axis: how many units it has, and the columns (of the consumer's input) and cost of each.

    A unit's cost is what removing it alone saves. least: fewest units that can stay. shared: by the name of another
    group, what both saved together and is so counted twice. stock: None where the stock config cannot state that
    there are fewer units.
    """

    kind: str
    block: str
    units: int
    unit_width: int = 1
    unit_macs: float
    unit_parameters: int
    least: int = 0
    shared: dict[str, SharedCost] = Field(default_factory=dict)
    stock: StockCounts | None = None


class Profile(Artifact):
    """`optin profile`: cost of the whole model and of each group's units."""

    kind: ClassVar[str] = "profile"
    schema_: Literal["optin.profile/1"] = Field(default="optin.profile/1", alias="schema")
    family: str
    architecture: str
    workload: Workload
    totals: Totals
    groups: dict[str, GroupCost]


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


KIND = UNITS["tokens"]


def merges_at(shares: Sequence[int], units: int) -> list[int]:
    """How many tokens merge behind each block that lets so many `units`-ths of those at it go on, rounded up."""
    left, counts = units, []
    for share in shares:
        after = -(-left * share // units)
        counts.append(left - after)
        left = after
    return counts
