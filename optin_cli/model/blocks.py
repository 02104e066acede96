"""Find the blocks of a stack in a model, and where the paths of their rules lead."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from optin_cli.architectures.schema import StackRule


@dataclass(frozen=True)
class Place:
    """A block's path, and the paths of other modules that its rules may name, by "@NAME"."""

    path: str
    others: Mapping[str, str]

    def __call__(self, relative: str) -> str:
        """The full path of one that a rule gives; an unknown "@NAME" stays in it, where no module has that name."""
        if not relative:
            return self.path
        name, dot, rest = relative.partition(".")
        return f"{self.others[name]}{dot}{rest}" if name in self.others else f"{self.path}.{relative}"


@dataclass(frozen=True)
class FoundStack:
    """A stack of a description with the blocks of a model that are its own, in order, by name."""

    rule: StackRule
    places: Mapping[str, Place]


def find_stack(model: nn.Module, rule: StackRule, root: str) -> FoundStack:
    """Match a stack's pattern against a model; a block's name is that of the stack and the indices matched by *."""
    prefix = f"{root}." if root and not rule.of_head else ""
    expression = re.compile(re.escape(prefix + rule.blocks).replace(r"\*", r"(\d+)") + r"\Z")
    modules = [(path, type(module).__name__) for path, module in model.named_modules()]
    found = [
        (number, path, list(match.groups()))
        for number, (path, kind) in enumerate(modules)
        if (match := expression.match(path)) and (not rule.types or kind in rule.types)
    ]
    places = {}
    for place, (number, path, indices) in enumerate(found):
        others = {}
        end = len(modules)
        if place + 1 < len(found):
            end, others["@next"], _ = found[place + 1]
        elif rule.after_last is not None:
            others["@next"] = prefix + rule.after_last
        for name, kinds in rule.between.items():
            between = [p for p, kind in modules[number + 1 : end] if kind in kinds and not p.startswith(f"{path}.")]
            others |= {f"@{name}": p for p in between[:1]}
        places[".".join([rule.name, *indices])] = Place(path, others)
    return FoundStack(rule, places)
