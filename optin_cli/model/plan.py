"""Plans of pruned checkpoints: what `modeling_optin.apply_plan` does to a freshly built model, as a config holds it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from optin_cli.architectures.schema import EmptyRule, RowsRule, SelectRule


class SelectedArgument(SelectRule):
    """The entries of an argument that stay along its axis, `of` how many."""

    index: list[int]
    of: int


class Padded(BaseModel):
    """A linear layer whose heads are narrower than what reads them, which then sees zeros.

    widths: of a head in each part of its output. to: the width that each part is given.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    module: str
    widths: list[int]
    to: int


class Merge(BaseModel):
    """How many tokens merge behind each block; see `modeling_optin.merge_between`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    blocks: list[str]
    counts: list[int]
    special: int
    argument: str


class Size(RowsRule):
    """An attribute that is given the rows of a parameter as they are now, divided as the rule says."""

    attribute: str


class Layout(BaseModel):
    """New shapes and attributes, emptied modules and bypassed blocks (all by full path), and merging of tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    root: str
    parameters: dict[str, list[int]] = {}
    attributes: dict[str, int] = {}
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
