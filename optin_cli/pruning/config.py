"""Express a mask of uniform layout by keys of the library's own config, or say why that is impossible."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from optin_cli.artifacts.mask import Mask, layout_class
from optin_cli.checkpoints.checkpoint import Checkpoint
from optin_cli.errors import ArtifactError, CheckpointError
from optin_cli.model.config_counts import Settings
from optin_cli.model.structure import Group, Structure

SHOWN = 4
"""Reasons that a refusal lists."""


def layout_of(mask: Mask) -> str:
    """The layout that a mask was asked for."""
    return str(mask.options.get("layout", "ragged"))


def config_settings(checkpoint: Checkpoint, mask: Mask, name: str) -> Settings | None:
    """Keys of the library's own config that state a mask of uniform layout; None for a ragged one.

    They are checked: the library's class is built from them, and its weights must have the pruned shapes.

    Raises:
        ArtifactError: the config cannot state it; says why.
    """
    if layout_of(mask) != "uniform":
        return None
    kept = {group: len(part.kept) for group, part in mask.groups.items()}
    settings, problems = _state(checkpoint.structure, kept)
    tokens = checkpoint.structure.tokens
    if tokens is not None and any(tokens.counts({group: part.kept for group, part in mask.groups.items()})):
        problems.append("its config has no key for tokens that merge")
    if not problems:
        try:
            built = checkpoint.blueprint.builder.plain_shapes(checkpoint.blueprint, settings)
        except CheckpointError as error:
            problems = [error.message]
        else:
            problems = _differences(built, cut_shapes(checkpoint.model, checkpoint.structure, kept))
    if problems:
        raise ArtifactError(
            f"{name} has a uniform layout, but the stock {checkpoint.blueprint.model_class} cannot express it:\n"
            + "\n".join(f"  {problem}" for problem in problems[:SHOWN]),
            hint="Search again with --layout uniform on the scores of this checkpoint, or without it: layers of "
            "different widths load with trust_remote_code=True, or optin_cli.load.",
        )
    return settings


def _state(structure: Structure, kept: Mapping[str, int]) -> tuple[Settings, list[str]]:
    """The keys, and what of the mask no key states."""
    classes: dict[str, list[tuple[Group, int]]] = {}
    for group in structure.groups:
        member = (group, kept.get(group.name, group.units))
        classes.setdefault(layout_class(group.name, group.block_name), []).append(member)
    settings: Settings = {}
    problems: list[str] = []
    for name, members in classes.items():
        if all(count == group.units for group, count in members):
            continue
        (few, least), (many, most) = (pick(members, key=lambda member: member[1]) for pick in (min, max))
        stock, count = members[0][0].stock, members[0][1]
        if least != most:
            problems.append(f"{few.name} keeps {least} units and {many.name} {most}, but there is one number for all")
        elif stock is None:
            problems.append(f"its config has no key for fewer units of {name}, of which the mask keeps {count}")
        elif not stock.counts().allows(count):
            problems.append(f"{name} keeps {count} units, but {stock.counts().words}")
        else:
            settings |= stock.settings(count)
    return settings, problems


def cut_shapes(model: nn.Module, structure: Structure, kept: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights once cut, by name."""
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    for group in structure.groups:
        for piece in group.slices:
            if piece.parameter in shapes:
                shapes[piece.parameter][piece.axis] = piece.parts * kept.get(group.name, group.units) * piece.block
    return {name: tuple(shape) for name, shape in shapes.items()}


def _differences(built: Mapping[str, tuple[int, ...]], cut: Mapping[str, tuple[int, ...]]) -> list[str]:
    return [
        f"{name} would be {_shape(cut.get(name))}, but the class builds {_shape(built.get(name))}"
        for name in dict.fromkeys([*cut, *built])
        if cut.get(name) != built.get(name)
    ]


def _shape(shape: tuple[int, ...] | None) -> str:
    return "nothing" if shape is None else " x ".join(map(str, shape))
