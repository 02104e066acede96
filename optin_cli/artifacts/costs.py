"""Costs recorded in artifacts: MACs and parameters per unit and group, and how they depend on merged tokens."""

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from optin_cli.artifacts.base import Artifact, Frozen, Totals, Workload
from optin_cli.options.scoring import UNITS


class SharedCost(Frozen):
    """Cost that one unit of each of two groups shares, in weights indexed by both."""

    macs: float
    parameters: int


class ConfigCounts(Frozen):
    """Counts of a group's units that the library's own config can state for all blocks: multiples of `step`, 1 or more.

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
    """One prunable axis: its number of units, and the width and cost of each.

    The cost of a unit is what removing it alone saves. least: fewest units that may stay. shared: by name of another
    group, the cost counted in both. config: counts that the library's own config can state; None if it can state none.
    """

    kind: str
    block: str
    units: int
    unit_width: int = 1
    unit_macs: float
    unit_parameters: int
    least: int = 0
    shared: dict[str, SharedCost] = Field(default_factory=dict)
    config: ConfigCounts | None = Field(default=None, alias="stock")


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
    """MACs of a block for the whole sequence, and the part that grows with the square of its length."""

    macs: float
    square: float


class TokenCosts(Frozen):
    """How costs depend on sequence length when tokens merge between blocks.

    length: tokens of the whole sequence, of which `special` never merge. width: hidden size. blocks: in order, by name.
    unit_square: by group name, the MACs of a unit that grow with the square of the length.
    """

    length: int
    special: int
    width: int
    blocks: dict[str, BlockCost]
    unit_square: dict[str, float]


class TokenExchange(Frozen):
    """Loss per importance of units and of tokens after refit, measured at one share of the MACs.

    units_lost, tokens_lost: importance lost at that share by removing units only, and by merging tokens only.
    units_distance, tokens_distance: trajectory distance of each refitted model from the original. rate: distance per
    importance of tokens over that of units; tokens' importances were multiplied by it.
    """

    share: float
    units_lost: float
    units_distance: float
    tokens_lost: float
    tokens_distance: float
    rate: float


class BlockExchange(Frozen):
    """Losses of refitted models, measured without units at one share of the MACs, and without 1, 2, … whole blocks.

    units_lost: importance lost at that share by removing units. units_distance: trajectory distance of that model, once
    refitted, from the original. depths: how many blocks went; distances: of the refitted models without them.
    """

    share: float
    units_lost: float
    units_distance: float
    depths: list[int]
    distances: list[float]


TOKEN = UNITS["tokens"]
"""Kind of the groups whose units are tokens."""
HEAD_DIM = UNITS["head-dims"]
"""Kind of the groups whose units are dimensions of queries and keys."""
BLOCK = UNITS["blocks"]
"""Kind of the groups whose only unit is a whole block, with all other groups of it."""


def merges_at(shares: Sequence[int], units: int) -> list[int]:
    """Tokens merged after each block, given the kept share of each block in `units`-ths (rounded up)."""
    left, counts = units, []
    for share in shares:
        after = -(-left * share // units)
        counts.append(left - after)
        left = after
    return counts
