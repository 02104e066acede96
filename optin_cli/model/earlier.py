"""Say a plan in the terms of earlier versions of a library, which built the same models of other modules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

from torch import nn

from optin_cli.architectures.schema import EarlierRule, EmptyRule
from optin_cli.model.lookup import attribute_at
from optin_cli.model.plan import Layout, Need, Plan, SelectedArgument, Size

T = TypeVar("T")
ANY = "*"
"""Stands for any one component of a path."""


def with_earlier(plan: Plan, model: nn.Module, rule: EarlierRule | None, written_by: tuple[str, str]) -> Plan:
    """The plan of a model as a folder holds it. rule: paths in the whole model. written_by: library and version."""
    if rule is None:
        return plan.model_copy(update={"written_by": written_by})
    needs = [*_needs(model, rule)]
    earlier = [earlier_layout(plan, rule)]
    return plan.model_copy(update={"earlier": earlier, "written_by": written_by, "since": rule.since, "needs": needs})


def _needs(model: nn.Module, rule: EarlierRule) -> Iterator[Need]:
    """What of the rule concerns this model."""
    for need in rule.needs:
        found = attribute_at(model, need.path)
        if found is not None and (need.unless is None or found != need.unless):
            value = found if isinstance(found, (bool, int, float, str)) else None
            yield Need(path=need.path, since=need.since, value=value)


def earlier_layout(plan: Plan, rule: EarlierRule) -> Layout:
    """What a plan does to a model of the earlier versions. rule: paths in the whole model."""

    def theirs(path: str) -> str:
        return _renamed(path, rule.names)

    shapes: dict[str, list[int]] = {}
    for path, shape in plan.parameters.items():
        before = shapes.get(theirs(path))
        shapes[theirs(path)] = shape if before is None else [before[0] + shape[0], *shape[1:]]
    merge = plan.merge and plan.merge.model_copy(update={"blocks": [theirs(path) for path in plan.merge.blocks]})
    return Layout(
        root=theirs(plan.root),
        parameters=shapes,
        attributes={theirs(path): value for path, value in plan.attributes.items()},
        select=[_selected(one, rule) for one in plan.select],
        attend=[theirs(path) for path in plan.attend],
        pad=[one.model_copy(update={"module": theirs(one.module)}) for one in plan.pad],
        empty=[_emptied(one, rule) for one in plan.empty],
        merge=merge,
        sizes=[*_sizes(shapes, rule)],
    )


def _find(path: str, patterns: Mapping[str, T]) -> tuple[T, list[str], list[str]] | None:
    """What the longest pattern that begins a path stands for, the values of its wildcards, and the rest of the path."""
    parts = path.split(".") if path else []
    for pattern in sorted(patterns, key=lambda pattern: -len(pattern.split("."))):
        wanted = pattern.split(".")
        pairs = [*zip(wanted, parts, strict=False)]
        if len(pairs) == len(wanted) and all(one in (ANY, part) for one, part in pairs):
            return patterns[pattern], [part for one, part in pairs if one == ANY], parts[len(wanted) :]
    return None


def _filled(pattern: str, values: Sequence[str], rest: Sequence[str] = ()) -> str:
    """A pattern with its wildcards replaced in order."""
    left = iter(values)
    return ".".join([*(next(left) if part == ANY else part for part in pattern.split(".") if part), *rest])


def _renamed(path: str, names: Mapping[str, str]) -> str:
    found = _find(path, names)
    return path if found is None else _filled(*found)


def _selected(one: SelectedArgument, rule: EarlierRule) -> SelectedArgument:
    found = _find(one.module, rule.arguments)
    argument = one.argument if found is None else found[0].get(one.argument, one.argument)
    return one.model_copy(update={"module": _renamed(one.module, rule.names), "argument": argument})


def _emptied(one: EmptyRule, rule: EarlierRule) -> EmptyRule:
    remove = tuple(_renamed(path, rule.names) for path in one.remove)
    found = _find(one.module, rule.empty)
    if found is None:
        return one.model_copy(update={"module": _renamed(one.module, rule.names), "remove": remove})
    other, values, _ = found
    return other.model_copy(update={"module": _filled(other.module, values), "remove": remove})


def _sizes(shapes: Mapping[str, list[int]], rule: EarlierRule) -> Iterator[Size]:
    """Attributes that follow from parameters which have changed."""
    for attribute, size in rule.sizes.items():
        for path in shapes:
            found = _find(path, {size.rows: attribute})
            if found is not None and not found[2]:
                values = found[1]
                over = size.over and _filled(size.over, values)
                yield Size(attribute=_filled(attribute, values), rows=path, parts=size.parts, over=over)
