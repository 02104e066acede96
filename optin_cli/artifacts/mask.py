"""The mask artifact: the kept units of every group under a budget."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from optin_cli.artifacts.base import MOST_UNITS, Artifact, Frozen, NotNegative, Workload


def layout_class(group: str, block: str) -> str:
    """Name shared by the groups that a uniform layout prunes alike: the stack, and the group's name in its block."""
    return f"{block.partition('.')[0]}.{group.removeprefix(f'{block}.')}"


Share = Annotated[float, Field(ge=0, le=1)]
Kept = dict[str, list[int]]


class GroupMask(Frozen):
    """Kept unit indices of one group, ascending."""

    units: int = Field(ge=1, le=MOST_UNITS)
    kept: list[int]

    @model_validator(mode="after")
    def _check(self) -> GroupMask:
        outside = [u for u in self.kept if not 0 <= u < self.units]
        if outside:
            raise ValueError(f"index {outside[0]} is out of range: the group has units 0 to {self.units - 1}")
        if len(set(self.kept)) != len(self.kept):
            twice = next(u for u in self.kept if self.kept.count(u) > 1)
            raise ValueError(f"index {twice} is listed more than once")
        if sorted(self.kept) != self.kept:
            raise ValueError("kept indices must be in ascending order")
        return self


MOST_IN_ALL = 1 << 24
"""Most units of all groups together."""


def _require_few(groups: dict[str, GroupMask]) -> dict[str, GroupMask]:
    if (units := sum(group.units for group in groups.values())) > MOST_IN_ALL:
        raise ValueError(f"the groups have {units} units in all; expected at most {MOST_IN_ALL}")
    return groups


Groups = Annotated[dict[str, GroupMask], AfterValidator(_require_few)]


class Budget(Frozen):
    """Asked and reached shares of the whole model (0 to 1)."""

    asked: dict[str, Share]
    reached: dict[str, Share]


class Mask(Artifact):
    """`optin search`: the kept units of every group under a budget.

    importance_lost: None if units were not chosen by their scores alone. ragged_importance_lost: for a uniform layout,
    the loss of the ragged mask of the same limits.
    """

    kind: ClassVar[str] = "mask"
    schema_: Literal["optin.mask/1"] = Field(default="optin.mask/1", alias="schema")
    workload: Workload
    budget: Budget
    importance_lost: NotNegative | None
    ragged_importance_lost: NotNegative | None = None
    groups: Groups

    @property
    def kept(self) -> Kept:
        """Kept units by group name."""
        return {name: group.kept for name, group in self.groups.items()}
