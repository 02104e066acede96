"""Plans of pruned checkpoints: what `modeling_optin.apply_plan` does to a freshly built model, as a config holds it."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from optin_cli.architectures.schema import EmptyRule, RowsRule, SelectRule
from optin_cli.errors import CheckpointError, problems

Count = Annotated[int, Field(ge=0, lt=2**31)]
"""A size, an index or a number of units; no tensor of ours is longer."""
WIDEST_HEAD = 2**13
"""Far more dimensions than a head has; a width that heads are padded to takes memory for every token."""


class SelectedArgument(SelectRule):
    """The entries of an argument that stay along its axis, `of` how many."""

    index: list[Count]
    of: Count


class Padded(BaseModel):
    """A linear layer whose heads are narrower than what reads them, which then sees zeros.

    widths: of a head in each part of its output. to: the width that each part is given.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    module: str
    widths: list[Annotated[int, Field(ge=1)]] = Field(min_length=1)
    to: Annotated[int, Field(ge=1, le=WIDEST_HEAD)]

    @model_validator(mode="after")
    def _check(self) -> Padded:
        if self.to < max(self.widths):
            raise ValueError(f"heads of {max(self.widths)} dimensions cannot be padded to {self.to}")
        return self


class Merge(BaseModel):
    """How many tokens merge behind each block; see `modeling_optin.merge_between`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    blocks: list[str]
    counts: list[Count]
    special: Count
    argument: str


class Size(RowsRule):
    """An attribute that is given the rows of a parameter as they are now, divided as the rule says."""

    attribute: str


class Layout(BaseModel):
    """New shapes and attributes, emptied modules and bypassed blocks (all by full path), and merging of tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    root: str
    parameters: dict[str, list[Count]] = {}
    attributes: dict[str, Count] = {}
    select: list[SelectedArgument] = []
    attend: list[str] = []
    pad: list[Padded] = []
    empty: list[EmptyRule] = []
    merge: Merge | None = None
    sizes: list[Size] = []
    bypass: list[str] = []


class Need(BaseModel):
    """What has to be at a full path, as it is since that version: this value, or anything where it is None."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    since: str
    value: bool | int | float | str | None = None


class Plan(Layout):
    """What is done to a model of the version of the library that wrote the folder, and of earlier ones.

    earlier: the same in the terms of each. written_by: name and version of that library; since: the first version of
    it that has these terms, if known. needs: what the plan does not change, and no version can do without.
    """

    earlier: list[Layout] = []
    written_by: tuple[str, str] | None = None
    since: str | None = None
    needs: list[Need] = []

    def then(self, later: Plan) -> Plan:
        """The plan of pruning by this one and then by `later`, without the terms of earlier versions."""
        return Plan(
            root=self.root,
            parameters={**self.parameters, **later.parameters},
            attributes={**self.attributes, **later.attributes},
            select=[*self.select, *later.select],
            attend=[*self.attend, *(path for path in later.attend if path not in self.attend)],
            pad=[*(p for p in self.pad if p.module not in {n.module for n in later.pad}), *later.pad],
            empty=[*self.empty, *later.empty],
            merge=later.merge or self.merge,
            bypass=[*self.bypass, *(path for path in later.bypass if path not in self.bypass)],
        )


def read_plan(found: Any, where: str) -> dict[str, Any] | None:
    """The plan that a config holds, as it is there; None without one.

    Raises CheckpointError: it is none that this version could have written. where: the config, for the message.
    """
    if found is None:
        return None
    try:
        Plan.model_validate_json(json.dumps(found), strict=True)
    except ValidationError as error:
        raise CheckpointError(
            f"What {where} says of how the model was pruned is not valid:\n{problems(error)}",
            hint="The file was changed, or another version of optin wrote it; prune the original again.",
        ) from error
    plan: dict[str, Any] = found
    return plan
