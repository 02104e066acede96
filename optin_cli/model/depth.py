"""Whole blocks as units: one that goes does not run, and the next one gets what it would have got.

Every block has a group of one unit, `encoder.3.block`, which stands for the block with everything in it. While a model
is pruned in memory, blocks that go are bypassed, so that all paths stay as they are; a folder has fewer blocks, and its
config says so.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from optin_cli.architectures.schema import DepthRule
from optin_cli.artifacts.costs import BLOCK, ConfigCounts, GroupCost
from optin_cli.errors import ArtifactError
from optin_cli.model.blocks import FoundStack
from optin_cli.model.plan import Plan
from optin_cli.model.units import Group, Keeping, UnitKind

INDEX = "layer_idx"
"""Attribute by which modules of transformers know their block's place, such as in a cache of keys and values."""


@dataclass(frozen=True)
class Depth(UnitKind):
    """The blocks of a stack, all children of one module list or sequence. blocks: (name, path) in order."""

    blocks: tuple[tuple[str, str], ...]
    rule: DepthRule

    @property
    def units(self) -> dict[str, int]:
        """One a block."""
        return {f"{name}.{BLOCK}": 1 for name, _ in self.blocks}

    def dropped(self, kept: Keeping) -> tuple[str, ...]:
        """Blocks whose only unit is not kept."""
        return tuple(name for name, _ in self.blocks if not len(kept.get(f"{name}.{BLOCK}", (0,))))

    def bypassed(self, kept: Keeping) -> list[str]:
        """Paths of the blocks that go."""
        gone = self.dropped(kept)
        return [path for name, path in self.blocks if name in gone]

    @contextlib.contextmanager
    def masked(self, model: nn.Module, kept: Keeping) -> Iterator[None]:
        """Let blocks that go put out what they are given."""
        modules = [model.get_submodule(path) for path in self.bypassed(kept)]
        originals = [module.__dict__.get("forward") for module in modules]
        try:
            for module in modules:
                module.forward = _passing_on(module.forward)
            yield
        finally:
            for module, original in zip(modules, originals, strict=True):
                del module.forward
                if original is not None:
                    module.forward = original

    def cut(self, _model: nn.Module, kept: Keeping, root: str) -> tuple[Plan, dict[str, torch.Tensor]]:
        """Bypass blocks that go; `Shortening` then removes them."""
        return Plan(root=root, bypass=self.bypassed(kept)), {}

    def costs(self, model: nn.Module, by_module: Mapping[str, float]) -> dict[str, GroupCost]:
        """What each block costs with everything in it."""
        return {
            f"{name}.{BLOCK}": GroupCost(
                kind=BLOCK,
                block=name,
                units=1,
                unit_macs=by_module.get(path, 0.0),
                unit_parameters=sum(p.numel() for p in model.get_submodule(path).parameters()),
                config=ConfigCounts(),
            )
            for name, path in self.blocks
        }

    def check(self, kept: Keeping, name: str) -> None:
        """Refuse a mask that leaves no block."""
        if len(self.dropped(kept)) == len(self.blocks):
            raise ArtifactError(
                f"{name} keeps none of the {len(self.blocks)} blocks; at least one must stay.",
                hint=f'Keep the unit of one, such as "{self.blocks[0][0]}.{BLOCK}": {{"units": 1, "kept": [0]}}.',
            )

    def changes(self, kept: Keeping, group: Group) -> bool:
        """Whether a block before that of the group goes, or the next one does, for which it makes up."""
        names, gone = [name for name, _ in self.blocks], self.dropped(kept)
        return group.block in names and bool({*names[: names.index(group.block) + 2]} & {*gone})

    def standing_for(self, kept: Keeping) -> dict[str, str]:
        """The block whose output each one that stays is to give: the last of those that go behind it, or itself."""
        gone, found, place = self.dropped(kept), dict[str, str](), ""
        for name, _ in self.blocks:
            place = place if name in gone else name
            if place:
                found[place] = name
        return found


def depth_of(kinds: Sequence[UnitKind]) -> Depth | None:
    """The blocks among the kinds of a structure; None where they cannot go."""
    return next((kind for kind in kinds if isinstance(kind, Depth)), None)


def find_depth(_model: nn.Module, stacks: Sequence[FoundStack], _root: str, _problems: list[str]) -> Depth | None:
    """The first stack whose rule says how its library's config states the number of blocks."""
    for stack in stacks:
        blocks = tuple((name, place.path) for name, place in stack.places.items())
        if stack.rule.depth is not None and len(blocks) > 1:
            return Depth(blocks, stack.rule.depth)
    return None


def _passing_on(compute: Any) -> Any:
    @functools.wraps(compute)  # whoever looks at its signature sees that of the block
    def forward(*args: Any, **kwargs: Any) -> Any:
        return args[0] if args else next(iter(kwargs.values()))

    return forward


@dataclass(frozen=True)
class Shortening:
    """The removal of bypassed blocks from a model in memory.

    places: path of every block of the stack by its path before, None for those that go. rule: of the library's config.
    """

    places: Mapping[str, str | None]
    rule: DepthRule

    @classmethod
    def of(cls, kinds: Sequence[UnitKind], kept: Keeping) -> Shortening | None:
        """That of a mask; None if it removes no block."""
        depth = depth_of(kinds)
        if depth is None or not (gone := depth.bypassed(kept)):
            return None
        paths = [path for _, path in depth.blocks]
        left = iter(paths)
        return cls({path: None if path in gone else next(left) for path in paths}, depth.rule)

    @property
    def kept(self) -> list[int]:
        """Numbers of the blocks that stay."""
        return [number for number, place in enumerate(self.places.values()) if place is not None]

    def moved(self, path: str) -> str | None:
        """Where what lies at a path goes; None if it is in a block that is removed."""
        for before, after in self.places.items():
            if path == before or path.startswith(f"{before}."):
                return None if after is None else after + path.removeprefix(before)
        return path

    def plan(self, plan: Plan) -> Plan:
        """A plan for the model as it is then, in the terms of this version of the library."""

        def at(path: str) -> str:
            return self.moved(path) or ""

        def staying(paths: Any) -> list[str]:
            return [at(path) for path in paths if at(path)]

        def ruled(rules: Sequence[Any]) -> list[Any]:
            return [rule.model_copy(update={"module": at(rule.module)}) for rule in rules if at(rule.module)]

        emptied = [rule.model_copy(update={"remove": tuple(staying(rule.remove))}) for rule in plan.empty]
        return plan.model_copy(
            update={
                "parameters": {at(path): shape for path, shape in plan.parameters.items() if at(path)},
                "attributes": {at(path): value for path, value in plan.attributes.items() if at(path)},
                "select": ruled(plan.select),
                "attend": staying(plan.attend),
                "pad": ruled(plan.pad),
                "empty": ruled(emptied),
                "bypass": [],
            }
        )

    def apply(self, model: nn.Module) -> None:
        """Take the blocks out of their list, and tell the others their new places."""
        owner, _, _ = next(iter(self.places)).rpartition(".")
        blocks = model.get_submodule(owner)
        assert isinstance(blocks, nn.ModuleList | nn.Sequential)
        for number in reversed(range(len(blocks))):
            if number not in self.kept:
                del blocks[number]
        for number, block in enumerate(blocks):
            for module in block.modules():
                if isinstance(getattr(module, INDEX, None), int):
                    setattr(module, INDEX, number)
