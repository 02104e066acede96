"""Costs recorded in artifacts: MACs and parameters per unit and group, and how they depend on merged tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from optin_cli.artifacts.base import MOST_UNITS, Artifact, Count, Frozen, NotNegative, Side, Totals, Workload
from optin_cli.options.scoring import UNITS

ROUNDING = 1e-6
"""Largest relative error of a sum of recorded costs."""


class SharedCost(Frozen):
    """Cost that one unit of each of two groups shares, in weights indexed by both."""

    macs: NotNegative
    parameters: Count


class ConfigCounts(Frozen):
    """Counts of a group's units that the library's own config can state for all blocks: multiples of `step`, 1 or more.

    divisor_of: what they must divide, None for anything.
    """

    step: int = Field(default=1, ge=1)
    divisor_of: int | None = Field(default=None, ge=1)

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
    units: int = Field(ge=1, le=MOST_UNITS)
    unit_width: int = Field(default=1, ge=1)
    unit_macs: NotNegative
    unit_parameters: Count
    least: Count = 0
    shared: dict[str, SharedCost] = Field(default_factory=dict)
    config: ConfigCounts | None = Field(default=None, alias="stock")


def require_within(groups: Mapping[str, GroupCost], totals: Totals) -> None:
    """Refuse groups that cost more than the whole model that they are in (ValueError)."""
    for name, group in groups.items():
        if group.units * group.unit_macs > totals.macs * (1 + ROUNDING):
            raise ValueError(f"{name} takes {group.units * group.unit_macs:,.0f} MACs of the model's {totals.macs:,}")
        if group.units * group.unit_parameters > totals.parameters:
            parameters = group.units * group.unit_parameters
            raise ValueError(f"{name} takes {parameters:,} parameters of the model's {totals.parameters:,}")


class Profile(Artifact):
    """`optin profile`: cost of the whole model and of each group's units."""

    kind: ClassVar[str] = "profile"
    needs: ClassVar[tuple[str, ...]] = ("checkpoint",)
    schema_: Literal["optin.profile/1"] = Field(default="optin.profile/1", alias="schema")
    family: str
    architecture: str
    workload: Workload
    totals: Totals
    groups: dict[str, GroupCost]

    @model_validator(mode="after")
    def _check(self) -> Profile:
        require_within(self.groups, self.totals)
        return self


class BlockCost(Frozen):
    """MACs of a block for the whole sequence, and the part that grows with the square of its length."""

    macs: NotNegative
    square: NotNegative


class TokenCosts(Frozen):
    """How costs depend on sequence length when tokens merge between blocks.

    length: tokens of the whole sequence, of which `special` never merge. width: hidden size. blocks: in order, by name.
    unit_square: by group name, the MACs of a unit that grow with the square of the length.
    """

    length: Side
    special: Count
    width: int = Field(ge=1)
    blocks: dict[str, BlockCost]
    unit_square: dict[str, NotNegative]

    @model_validator(mode="after")
    def _check(self) -> TokenCosts:
        if self.special >= self.length:
            raise ValueError(f"{self.special} of {self.length} tokens are special, so that none may merge")
        return self


class TokenExchange(Frozen):
    """Loss per importance of units and of tokens after refit, measured at one share of the MACs.

    units_lost, tokens_lost: importance lost at that share by removing units only, and by merging tokens only.
    units_distance, tokens_distance: trajectory distance of each refitted model from the original. rate: distance per
    importance of tokens over that of units; tokens' importances were multiplied by it.
    """

    share: NotNegative
    units_lost: NotNegative
    units_distance: NotNegative
    tokens_lost: NotNegative
    tokens_distance: NotNegative
    rate: NotNegative


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
