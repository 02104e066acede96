"""A model and its architecture description in; its groups, blocks and outputs out, every name and shape checked.

Sizes are read from the tensors themselves, so a checkpoint that was already cut is described as it is now.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from optin_cli.architectures.schema import (
    Architecture,
    EmptyRule,
    GroupRule,
    HeadRule,
    Layout,
    OutputRule,
    SelectRule,
    SliceRule,
)
from optin_cli.errors import ArchitectureError
from optin_cli.model.blocks import Place, match_blocks
from optin_cli.model.config_counts import Stock, resolve_stock
from optin_cli.model.lookup import attribute_at, module_at, number_at, tensor_at
from optin_cli.model.tokens import Tokens, find_tokens


@dataclass(frozen=True)
class Slice:
    """One parameter or buffer of which `axis` is laid out as parts x units x block."""

    parameter: str
    axis: int
    parts: int
    block: int


@dataclass(frozen=True)
class Group:
    """One prunable axis: `units` units of `block` columns each, side by side on `axis` of the consumer's input.

    All paths are full in-memory paths in the model. Masking scales the input of `gate`, mostly the consumer.
    stock: how the stock config states the number of units; None where it cannot.
    """

    name: str
    kind: str
    block_name: str
    units: int
    block: int
    axis: int
    consumer: str
    gate: str
    residual_sum: str | None
    residual: bool
    least: int
    block_path: str
    slices: tuple[Slice, ...]
    set_units: tuple[str, ...]
    set_width: tuple[str, ...]
    mixer: str | None
    select: tuple[SelectRule, ...]
    attend: str | None
    empty: EmptyRule | None
    stock: Stock | None

    @property
    def width(self) -> int:
        """Columns of the consumer's input."""
        return self.units * self.block


@dataclass(frozen=True)
class Block:
    """A point of the trajectory: the module whose output is compared, and that output's layout."""

    name: str
    path: str
    layout: Layout


@dataclass(frozen=True)
class Structure:
    """What can be pruned in a model and what is compared to judge it. tokens: None where they cannot merge."""

    family: str
    blocks: tuple[Block, ...]
    groups: tuple[Group, ...]
    outputs: tuple[OutputRule, ...]
    tokens: Tokens | None = None

    def group(self, name: str) -> Group:
        """The group of that name (KeyError if there is none)."""
        return {g.name: g for g in self.groups}[name]


def find_structure(
    model: nn.Module,
    architecture: Architecture,
    head: HeadRule,
    *,
    root: str = "",
    problem_type: str | None = None,
) -> Structure:
    """Resolve a description against a model.

    Args:
        model: the whole model.
        architecture: the family's description; its block paths are relative to `root`.
        head: what this model's head puts out.
        root: path of the base model inside `model` ("" when it is the base model itself).
        problem_type: transformers' `config.problem_type`, which decides the distribution of some outputs.

    Raises:
        ArchitectureError: a name is missing or a shape does not follow; all such problems together.
    """
    problems: list[str] = []
    blocks: list[Block] = []
    groups: list[Group] = []
    tokens: Tokens | None = None
    for stack in architecture.stacks:
        found = list(match_blocks(model, stack, root))
        if not found:
            of = f" and is one of {', '.join(stack.types)}" if stack.types else ""
            problems.append(f"no module matches {stack.blocks!r}{of} (stack {stack.name})")
        for place, indices in found:
            block_name = ".".join([stack.name, *indices])
            blocks.append(Block(block_name, place.path, stack.layout))
            for rule in stack.groups:
                if not _applies(model, rule, place):
                    continue
                group = _resolve_group(model, rule, place, block_name, problems)
                if group is not None:
                    groups.append(group)
        mine = [(block.name, block.path) for block in blocks[len(blocks) - len(found) :]]
        tokens = tokens or find_tokens(model, stack.tokens, mine, root)
    if not problems and not groups:
        problems.append("none of its blocks has a group that can be pruned")
    if problems:
        shown = problems[:12] + ([f"… and {len(problems) - 12} more"] if len(problems) > 12 else [])
        raise ArchitectureError(
            f"The architecture description {architecture.family!r} does not fit this {type(model).__name__}:\n"
            + "\n".join(f"  {p}" for p in shown),
            hint="Correct the description, or pass another one with --architecture my.json.",
        )
    return Structure(architecture.family, tuple(blocks), tuple(groups), resolve_outputs(head, problem_type), tokens)


def resolve_outputs(head: HeadRule, problem_type: str | None) -> tuple[OutputRule, ...]:
    """What a head puts out, each with the distribution that it has for that type of problem."""
    return tuple(
        rule.model_copy(update={"kind": rule.kind_by_problem_type.get(problem_type or "", rule.kind)})
        for rule in head.outputs
    )


def _resolve_group(
    model: nn.Module, rule: GroupRule, place: Place, block_name: str, problems: list[str]
) -> Group | None:
    name = f"{block_name}.{rule.name or rule.kind}"
    before = len(problems)
    if rule.count is not None:
        block = _block_of_count(model, rule, place, name, problems)
        if block < 1:
            return None
    else:
        factors = rule.block if isinstance(rule.block, list) else [rule.block]
        paths = [factor if isinstance(factor, int) else place(factor) for factor in factors]
        block = math.prod(number_at(model, path, name, problems) for path in paths)
        if block < 1:
            return None
    stock = resolve_stock(model, rule.stock, place, name, problems)
    slices = [s for r in rule.slices for s in _resolve_slices(model, r, block, place, name, problems)]
    inner: list[str | None] = [rule.gate, rule.residual_sum, rule.mixer, *(s.module for s in rule.select)]
    inner += [rule.attend, rule.empty.module if rule.empty else None]
    problems += [
        f"{name}: module {place(target)} does not exist"
        for target in [rule.consumer, *filter(None, inner)]
        if module_at(model, place(target)) is None
    ]
    problems += [
        f"{name}: attribute {place(attribute)} does not exist"
        for attribute in [*rule.set_units, *rule.set_width]
        if attribute_at(model, place(attribute)) is None
    ]
    units = _count_units(model, slices, name, problems)
    if len(problems) > before or units == 0:
        return None
    return Group(
        name=name,
        kind=rule.kind,
        block_name=block_name,
        units=units,
        block=block,
        axis=1 if isinstance(model.get_submodule(place(rule.consumer)), nn.Conv2d) else -1,
        consumer=place(rule.consumer),
        gate=place(rule.gate or rule.consumer),
        residual_sum=place(rule.residual_sum) if rule.residual_sum else None,
        residual=rule.residual,
        least=rule.least,
        block_path=place.path,
        slices=tuple(slices),
        set_units=tuple(map(place, rule.set_units)),
        set_width=tuple(map(place, rule.set_width)),
        mixer=place(rule.mixer) if rule.mixer else None,
        select=tuple(s.model_copy(update={"module": place(s.module)}) for s in rule.select),
        attend=place(rule.attend) if rule.attend else None,
        empty=rule.empty
        and rule.empty.model_copy(
            update={"module": place(rule.empty.module), "remove": tuple(map(place, rule.empty.remove))}
        ),
        stock=stock,
    )


def _applies(model: nn.Module, rule: GroupRule, place: Place) -> bool:
    """Whether a block is of the variant that has this group."""
    needed = {**rule.when, **({"": rule.types} if rule.types else {})}
    return all(type(module_at(model, place(path))).__name__ in kinds for path, kinds in needed.items())


def _block_of_count(model: nn.Module, rule: GroupRule, place: Place, name: str, problems: list[str]) -> int:
    """Size of a unit, from the number of units that an attribute holds; 0 where that cannot be told or none is left."""
    count = attribute_at(model, place(str(rule.count)))
    first = rule.slices[0]
    tensor = attribute_at(model, place(first.parameters[0]))
    if not isinstance(count, int) or not isinstance(tensor, torch.Tensor) or tensor.dim() <= first.axis:
        problems.append(f"{name}: attribute {place(str(rule.count))} is {count!r}, expected the number of units")
        return 0
    return tensor.shape[first.axis] // (first.parts * count) if count else 0


def _resolve_slices(
    model: nn.Module, rule: SliceRule, block: int, place: Place, name: str, problems: list[str]
) -> Iterator[Slice]:
    own = place(rule.block) if isinstance(rule.block, str) else rule.block or block
    size = number_at(model, own, name, problems)
    for parameter in rule.parameters if size else []:
        full = place(parameter)
        owner_path, _, leaf = full.rpartition(".")
        owner = module_at(model, owner_path)
        if owner is None or (leaf not in owner._parameters and leaf not in owner._buffers):
            if not rule.optional:
                problems.append(f"{name}: parameter {full} does not exist")
        elif getattr(owner, leaf) is not None:
            yield Slice(full, rule.axis, rule.parts, size)


def _count_units(model: nn.Module, slices: list[Slice], name: str, problems: list[str]) -> int:
    counts: dict[int, str] = {}
    for piece in slices:
        tensor = tensor_at(model, piece.parameter)
        if tensor.dim() <= piece.axis:
            problems.append(f"{name}: {piece.parameter} has shape {tuple(tensor.shape)}, no axis {piece.axis}")
            continue
        length = tensor.shape[piece.axis]
        if length % (piece.parts * piece.block):
            problems.append(
                f"{name}: axis {piece.axis} of {piece.parameter} has length {length}, "
                f"not a multiple of parts x block = {piece.parts} x {piece.block}"
            )
            continue
        counts.setdefault(length // (piece.parts * piece.block), piece.parameter)
    if len(counts) > 1:
        stated = ", ".join(f"{parameter} says {units}" for units, parameter in counts.items())
        problems.append(f"{name}: its parameters disagree on the number of units: {stated}")
    return next(iter(counts), 0)
