"""Slices of weights (attention heads, neurons, channels): masked by gates, pruned by slicing tensors.

Every parameter of a group follows one rule: axis length = parts x units x unit width. Pruning keeps, in each part, the
columns of the kept units.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from optin_cli.architectures.schema import GroupRule, SliceRule, Width
from optin_cli.artifacts.costs import GroupCost
from optin_cli.artifacts.mask import layout_class
from optin_cli.errors import ArtifactError
from optin_cli.model.blocks import FoundStack, Place
from optin_cli.model.config_counts import Settings, resolve_config
from optin_cli.model.costs import group_costs
from optin_cli.model.experts import UNITS
from optin_cli.model.lookup import attribute_at, module_at, number_at, tensor_at
from optin_cli.model.masking import gated
from optin_cli.model.plan import Plan, SelectedArgument
from optin_cli.model.units import Group, Keeping, Norm, Slice, UnitKind


@dataclass(frozen=True)
class Slices(UnitKind):
    """All groups of a model whose units are slices of weights, in order of their blocks."""

    groups: tuple[Group, ...]

    @property
    def units(self) -> dict[str, int]:
        """Number of units by group name."""
        return {group.name: group.units for group in self.groups}

    @property
    def sliced(self) -> tuple[Group, ...]:
        """All of them."""
        return self.groups

    def with_groups(self, groups: Iterable[Group]) -> Slices:
        """Other groups."""
        return Slices(tuple(groups))

    def masked(self, model: nn.Module, kept: Keeping) -> contextlib.AbstractContextManager[None]:
        """Gate the units of all groups that the mask names."""
        parameter = next(model.parameters())
        gates = {}
        for group in self.groups:
            if group.name in kept:
                gates[group] = torch.zeros(group.units, device=parameter.device, dtype=parameter.dtype)
                gates[group][list(kept[group.name])] = 1.0
        return gated(model, gates)

    def cut(self, model: nn.Module, kept: Keeping, root: str) -> tuple[Plan, dict[str, torch.Tensor]]:
        """Slice every tensor of the groups that lose units; a tensor of two groups is sliced on both axes."""
        plan, left = Plan(root=root), dict[str, torch.Tensor]()
        for group in self.groups:
            if group.name not in kept or len(kept[group.name]) == group.units:
                continue
            units = list(kept[group.name])
            removed = tuple(f"{path}." for path in group.empty.remove) if group.empty and not units else ()
            pieces = [piece for piece in group.slices if not piece.parameter.startswith(removed)]
            for piece in pieces:
                tensor = left.get(piece.parameter, tensor_at(model, piece.parameter))
                index = piece.indices(group.units, units).to(tensor.device)
                left[piece.parameter] = tensor.detach().index_select(piece.axis, index)
            plan = plan.then(
                Plan(
                    root=root,
                    parameters={p.parameter: list(left[p.parameter].shape) for p in pieces},
                    attributes={
                        **dict.fromkeys(group.set_units, len(units)),
                        **dict.fromkeys(group.set_width, len(units) * group.unit_width),
                        **{path: len(units) * each for path, each in group.set_each},
                    },
                    select=[
                        SelectedArgument(**s.model_dump(), index=units, of=group.units) for s in group.select if units
                    ],
                    attend=[group.attend] if group.attend and units else [],
                    empty=[group.empty] if group.empty and not units else [],
                )
            )
        if left:  # a reloaded model then rounds as this one does
            plan = plan.then(Plan(root=root, attend=opened(model, self.groups)))
        return plan, left

    def costs(self, model: nn.Module, by_module: Mapping[str, float]) -> dict[str, GroupCost]:
        """Measured cost of a unit of each group."""
        return group_costs(model, self.groups, by_module)

    def changes(self, kept: Keeping, group: Group) -> bool:
        """Whether the group loses units."""
        return len(kept.get(group.name, range(group.units))) < group.units

    def check(self, kept: Keeping, name: str) -> None:
        """Refuse a mask that leaves a block fewer units than it can run with."""
        for group in self.groups:
            if group.name in kept and len(kept[group.name]) < group.least:
                raise ArtifactError(
                    f"{name} keeps {len(kept[group.name])} of the {group.units} units of {group.name}; {group.block} "
                    f"needs at least {group.least} to run.",
                    hint=f"Keep {group.least} or more units of that group, or leave it out of the mask.",
                )

    def settings(self, kept: Keeping) -> tuple[Settings, list[str]]:
        """One number of units for each class of groups that a uniform layout prunes alike."""
        classes: dict[str, list[tuple[Group, int]]] = {}
        for group in self.groups:
            member = (group, len(kept.get(group.name, range(group.units))))
            classes.setdefault(layout_class(group.name, group.block), []).append(member)
        settings: Settings = {}
        problems: list[str] = []
        for name, members in classes.items():
            if all(count == group.units for group, count in members):
                continue
            (few, least), (many, most) = (pick(members, key=lambda member: member[1]) for pick in (min, max))
            config, count = members[0][0].config, members[0][1]
            if least != most:
                problems.append(
                    f"{few.name} keeps {least} units and {many.name} {most}, but there is one number for all"
                )
            elif config is None:
                problems.append(f"its config has no key for fewer units of {name}, of which the mask keeps {count}")
            elif not config.counts().allows(count):
                problems.append(f"{name} keeps {count} units, but {config.counts().words}")
            else:
                settings |= config.settings(count)
        return settings, problems


def opened(model: nn.Module, groups: Iterable[Group]) -> list[str]:
    """Attentions of groups that read their consumer's weights without calling it unless they are given a forward."""
    return [g.attend for g in groups if g.attend and isinstance(module_at(model, g.attend), nn.MultiheadAttention)]


def find_slices(model: nn.Module, stacks: Sequence[FoundStack], _root: str, problems: list[str]) -> Slices:
    """Resolve the groups that a description gives every block."""
    found = (
        _resolve_group(model, rule, place, name, problems)
        for stack in stacks
        for name, place in stack.places.items()
        for rule in stack.rule.groups
        if applies(model, rule, place)
    )
    return Slices(tuple(group for group in found if group is not None))


def _resolve_group(model: nn.Module, rule: GroupRule, place: Place, block: str, problems: list[str]) -> Group | None:
    name = f"{block}.{rule.name or rule.kind}"
    before = len(problems)
    unit_width = _unit_width(model, rule, place, name, problems)
    if unit_width < 1:
        return None
    config = resolve_config(model, rule.config, place, name, problems)
    found = _count_heads(model, rule, unit_width, place)
    slices = [s for r in rule.slices for s in _resolve_slices(model, r, unit_width, place, name, problems)]
    slices = [_narrowed(model, s, found, rule, place) for s in slices] if found else slices
    inner: list[str | None] = [rule.gate, rule.residual_sum, rule.mixer, *(s.module for s in rule.select)]
    inner += [rule.attend, rule.empty.module if rule.empty else None, *rule.norms, *rule.constant]
    problems += [
        f"{name}: module {place(target)} does not exist"
        for target in [rule.consumer, *filter(None, inner)]
        if module_at(model, place(target)) is None
    ]
    problems += [
        f"{name}: attribute {place(attribute)} does not exist"
        for attribute in [*rule.set_units, *rule.set_width, *rule.set_each]
        if attribute_at(model, place(attribute)) is None
    ]
    least = number_at(model, place(rule.least), name, problems) if isinstance(rule.least, str) else rule.least
    set_each = {place(path): _product(model, each, place, name, problems) for path, each in rule.set_each.items()}
    widths = {piece.parameter: piece.unit_width for piece in slices}
    norms = [Norm(place(path), widths.get(f"{place(path)}.weight", 0)) for path in rule.norms]
    problems += [f"{name}: no slice is of {norm.path}.weight" for norm in norms if not norm.unit_width]
    units = _count_units(model, slices, name, problems)
    if len(problems) > before or units == 0:
        return None
    return Group(
        name=name,
        kind=rule.kind,
        block=block,
        units=units,
        unit_width=unit_width,
        axis=1 if isinstance(model.get_submodule(place(rule.consumer)), nn.Conv2d) else -1,
        consumer=place(rule.consumer),
        gate=place(rule.gate or rule.consumer) + (f".{UNITS}" if rule.inside else ""),
        inside=rule.inside,
        reads=place(rule.reads or f"{rule.consumer}.weight"),
        residual_sum=place(rule.residual_sum) if rule.residual_sum else None,
        residual=rule.residual,
        rows=rule.rows,
        least=least,
        block_path=place.path,
        slices=tuple(slices),
        set_units=tuple(map(place, rule.set_units)),
        set_width=tuple(map(place, rule.set_width)),
        set_each=tuple(set_each.items()),
        norms=tuple(norms),
        mixer=place(rule.mixer) if rule.mixer else None,
        select=tuple(s.model_copy(update={"module": place(s.module)}) for s in rule.select),
        constant=tuple(map(place, rule.constant)),
        attend=place(rule.attend) if rule.attend else None,
        empty=rule.empty
        and rule.empty.model_copy(
            update={"module": place(rule.empty.module), "remove": tuple(map(place, rule.empty.remove))}
        ),
        config=config,
    )


def applies(model: nn.Module, rule: GroupRule, place: Place) -> bool:
    """Whether a block is of the variant that has this group."""
    needed = {**rule.when, **({"": rule.types} if rule.types else {})}
    return fits(model, needed, place) and not any(fits(model, {p: k}, place) for p, k in rule.unless.items())


def fits(model: nn.Module, needed: Mapping[str, list[str]], place: Place) -> bool:
    """Whether each of some modules of a block, by path, is of one of the class names that are given for it."""
    return all(_called(model, place(path)) in kinds for path, kinds in needed.items())


def _called(model: nn.Module, path: str) -> str:
    """The class name of a module, NoneType where there is nothing, the value of another attribute."""
    module = module_at(model, path)
    found = attribute_at(model, path) if module is None else module
    return type(found).__name__ if found is None or module is not None else str(found)


def _unit_width(model: nn.Module, rule: GroupRule, place: Place, name: str, problems: list[str]) -> int:
    """Columns of a unit; 0 where they are not known, or no unit is left of those that an attribute counts."""
    if rule.count is None:
        return _product(model, rule.unit_width, place, name, problems)
    count = attribute_at(model, place(rule.count))
    first = rule.slices[0]
    tensor = attribute_at(model, place(first.parameters[0]))
    if not isinstance(count, int) or not isinstance(tensor, torch.Tensor) or tensor.dim() <= first.axis:
        problems.append(f"{name}: attribute {place(rule.count)} is {count!r}, expected the number of units")
        return 0
    parts = first.parts if isinstance(first.parts, int) else len(first.parts)
    return tensor.shape[first.axis] // (parts * count) if count else 0


def _product(model: nn.Module, stated: Width, place: Place, name: str, problems: list[str]) -> int:
    """A width as rules state it; 0 where that is not one."""
    factors = stated if isinstance(stated, list) else [stated]
    paths = [factor if isinstance(factor, int) else place(factor) for factor in factors]
    return math.prod(number_at(model, path, name, problems) for path in paths)


def _resolve_slices(
    model: nn.Module, rule: SliceRule, unit_width: int, place: Place, name: str, problems: list[str]
) -> Iterator[Slice]:
    stated = [rule.unit_width or unit_width] if isinstance(rule.parts, int) else rule.parts
    widths = tuple(_product(model, width, place, name, problems) for width in stated)
    widths *= rule.parts if isinstance(rule.parts, int) else 1
    for parameter in rule.parameters if all(widths) else []:
        full = place(parameter)
        owner_path, _, leaf = full.rpartition(".")
        owner = module_at(model, owner_path)
        if owner is None or (leaf not in owner._parameters and leaf not in owner._buffers):
            if not rule.optional:
                problems.append(f"{name}: parameter {full} does not exist")
        elif getattr(owner, leaf) is not None:
            yield Slice(full, rule.axis, widths)


def _count_heads(model: nn.Module, rule: GroupRule, unit_width: int, place: Place) -> int:
    """Heads whose queries and keys may be narrower than values, by what the consumer reads; 0 if there are none."""
    consumer = module_at(model, place(rule.consumer))
    return consumer.in_features // unit_width if rule.query_key and isinstance(consumer, nn.Linear) else 0


def _narrowed(model: nn.Module, piece: Slice, heads: int, rule: GroupRule, place: Place) -> Slice:
    """A slice of queries and keys with the width that they have left."""
    assert rule.query_key is not None
    query, key = place(rule.query_key.query), place(rule.query_key.key)
    if piece.parameter.rpartition(".")[0] not in (query, key):
        return piece
    shared = 1 + (query == key)
    others = piece.widths[shared:]
    width = query_width(tensor_at(model, piece.parameter).shape[piece.axis], heads, shared, sum(others))
    return replace(piece, widths=(*[width] * shared, *others)) if width else piece


def query_width(outputs: int, heads: int, shared: int, others: int) -> int:
    """Columns of a head's queries in a layer that gives `shared` parts so wide, and `others` more columns a head."""
    return max(outputs // heads - others, 0) // shared


def _in_words(widths: Sequence[int]) -> str:
    """Widths of a unit in each part."""
    return f"{len(widths)} x {widths[0]}" if len(set(widths)) == 1 else " + ".join(map(str, widths))


def _count_units(model: nn.Module, slices: list[Slice], name: str, problems: list[str]) -> int:
    counts: dict[int, str] = {}
    for piece in slices:
        tensor = tensor_at(model, piece.parameter)
        if tensor.dim() <= piece.axis:
            problems.append(f"{name}: {piece.parameter} has shape {tuple(tensor.shape)}, no axis {piece.axis}")
        elif (length := tensor.shape[piece.axis]) % piece.unit_width:
            problems.append(
                f"{name}: axis {piece.axis} of {piece.parameter} has length {length}, "
                f"not a multiple of parts x unit width = {_in_words(piece.widths)}"
            )
        else:
            counts.setdefault(length // piece.unit_width, piece.parameter)
    if len(counts) > 1:
        stated = ", ".join(f"{parameter} says {units}" for units, parameter in counts.items())
        problems.append(f"{name}: its parameters disagree on the number of units: {stated}")
    return next(iter(counts), 0)
