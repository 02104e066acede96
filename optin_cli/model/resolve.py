"""Resolve an architecture description against a model: its blocks, units and outputs, every name and shape checked.

Sizes are read from the tensors themselves, so a checkpoint that was pruned already is described as it is now.
"""

import importlib.metadata
from collections.abc import Callable, Sequence

from torch import nn

from optin_cli.architectures.schema import Architecture, HeadRule, OutputRule
from optin_cli.errors import ArchitectureError
from optin_cli.model.blocks import FoundStack, find_stack
from optin_cli.model.depth import find_depth
from optin_cli.model.experts import OPENED
from optin_cli.model.head_dims import find_head_dims
from optin_cli.model.lookup import module_at
from optin_cli.model.modeling_optin import attend_by_parts
from optin_cli.model.slices import find_slices, opened
from optin_cli.model.structure import Block, Structure
from optin_cli.model.tokens import find_tokens
from optin_cli.model.units import UnitKind

Finder = Callable[[nn.Module, Sequence[FoundStack], str, list[str]], UnitKind | None]
"""The units of one kind in a model, given its stacks and the path of the base model. Problems are added to the list."""
KINDS: tuple[Finder, ...] = (find_slices, find_head_dims, find_tokens, find_depth)


def find_structure(
    model: nn.Module, architecture: Architecture, head: HeadRule, *, root: str = "", problem_type: str | None = None
) -> Structure:
    """Resolve a description against a model.

    Torch's multi-head attention reads the weights of its output projection without calling it. Where that is a
    consumer, the attention gets a forward that computes the same and calls it, so that what it is given can be seen.
    So do mixtures of experts (`experts.py`).

    Args:
        architecture: the family's description; its block paths are relative to `root`.
        head: what this model's head puts out.
        root: path of the base model inside `model` ("" when it is the base model itself).
        problem_type: transformers' `config.problem_type`, which decides the distribution of some outputs.

    Raises:
        ArchitectureError: a name is missing or a shape does not follow; all such problems together. Or the model has a
            module that the description refuses.
    """
    _require_prunable(model, architecture)
    problems: list[str] = []
    stacks = [find_stack(model, rule, root) for rule in architecture.stacks]
    for stack in stacks:
        if not stack.places and not stack.rule.optional:
            of = f" and is one of {', '.join(stack.rule.types)}" if stack.rule.types else ""
            problems.append(f"no module matches {stack.rule.blocks!r}{of} (stack {stack.rule.name})")
    found = (find(model, stacks, root, problems) for find in KINDS)
    kinds = tuple(kind for kind in found if kind is not None)
    decisions = [
        rule.model_copy(update={"module": f"{root}.{rule.module}".strip(".")}) for rule in architecture.decisions
    ]
    problems += [f"module {d.module} does not exist" for d in decisions if module_at(model, d.module) is None]
    if not problems and not any(kind.sliced for kind in kinds):
        problems.append("none of its blocks has a group that can be pruned")
    if problems:
        shown = problems[:12] + ([f"… and {len(problems) - 12} more"] if len(problems) > 12 else [])
        raise ArchitectureError(
            f"The architecture description {architecture.family!r} does not fit this {type(model).__name__}:\n"
            + "\n".join(f"  {p}" for p in shown),
            hint=_version_hint(architecture)
            + "Correct the description, or pass another one with --architecture my.json.",
        )
    groups = [group for kind in kinds for group in kind.sliced]
    for path in opened(model, groups):
        attend_by_parts(model.get_submodule(path))
    for path, inside in {group.gate: group.inside for group in groups if group.inside is not None}.items():
        OPENED[inside](model.get_submodule(path.rpartition(".")[0]))
    blocks = (Block(n, place.path, stack.rule.layout) for stack in stacks for n, place in stack.places.items())
    outputs = resolve_outputs(head, problem_type)
    earlier = architecture.earlier and architecture.earlier.under(root, root)
    return Structure(architecture.family, root, tuple(blocks), outputs, kinds, tuple(decisions), earlier)


def _version_hint(architecture: Architecture) -> str:
    """Which version of the library builds such models as described, where others do not."""
    if architecture.earlier is None or architecture.earlier.since is None:
        return ""
    library, since = architecture.library, architecture.earlier.since
    found = importlib.metadata.version(library)
    return f"It describes {library} >= {since}; {found} is installed: pip install '{library}>={since}'. "


def _require_prunable(model: nn.Module, architecture: Architecture) -> None:
    """Refuse a model with modules of which the description says that they bind its units together."""
    for rule in architecture.refusals:
        found = ((path, type(module).__name__) for path, module in model.named_modules())
        path, name = next(((path, name) for path, name in found if name in rule.types), ("", ""))
        if path:
            raise ArchitectureError(
                f"This {type(model).__name__} cannot be pruned: its {path} is a {name}, which {rule.which}.",
                hint=f"Pass a model of the family {architecture.family} without such modules.",
            )


def resolve_outputs(head: HeadRule, problem_type: str | None) -> tuple[OutputRule, ...]:
    """Outputs of a head, each with the distribution that it has for that type of problem."""
    return tuple(
        rule.model_copy(update={"kind": rule.kind_by_problem_type.get(problem_type or "", rule.kind)})
        for rule in head.outputs
    )
