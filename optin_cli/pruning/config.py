"""Express a mask of uniform layout by keys of the library's own config, or say why that is impossible."""

from collections.abc import Mapping

from torch import nn

from optin_cli.artifacts.mask import Mask
from optin_cli.checkpoints.checkpoint import Checkpoint
from optin_cli.checkpoints.decilm import MODEL_CLASS, Sizes
from optin_cli.errors import ArtifactError, CheckpointError
from optin_cli.model.config_counts import Settings
from optin_cli.model.depth import Shortening
from optin_cli.model.structure import Structure
from optin_cli.model.units import Keeping

DECI = "deci"
SHOWN = 4
"""Reasons that a refusal lists."""


def config_settings(checkpoint: Checkpoint, mask: Mask, name: str) -> Settings | None:
    """Keys of the library's own config that state a uniform mask; None for others (ArtifactError if none can).

    They are checked: the library's class is built from them, and its weights must have the pruned shapes.
    """
    if mask.options.get("layout") == DECI:
        _require_decilm(checkpoint, mask, name)
    if mask.options.get("layout") != "uniform":
        return None
    settings: Settings = {}
    problems: list[str] = []
    structure, shortening = checkpoint.structure, Shortening.of(checkpoint.structure.kinds, mask.kept)
    gone = set(structure.dropped(mask.kept))
    for kind in structure.with_groups(group for group in structure.groups if group.block not in gone).kinds:
        found, unstated = kind.settings(structure.within_blocks(mask.kept))
        settings, problems = {**settings, **found}, [*problems, *unstated]
    if not problems:
        blueprint = checkpoint.blueprint
        if shortening is not None:
            blueprint = blueprint.builder.with_blocks(blueprint, None, shortening.rule, shortening.kept)
        try:
            built = blueprint.builder.plain_shapes(blueprint, settings)
        except CheckpointError as error:
            problems = [error.message]
        else:
            cut = cut_shapes(checkpoint.model, structure, structure.within_blocks(mask.kept))
            if shortening is not None:
                places = {name: shortening.moved(name) for name in cut}
                cut = {place: cut[name] for name, place in places.items() if place is not None}
            optional = checkpoint.blueprint.head.may_miss
            missed = {name for name in built if name not in cut and name.partition(".")[0] in optional}
            problems = _differences({name: built[name] for name in built if name not in missed}, cut)
    if problems:
        raise ArtifactError(
            f"{name} has a uniform layout, but the stock {checkpoint.blueprint.model_class} cannot express it:\n"
            + "\n".join(f"  {problem}" for problem in problems[:SHOWN]),
            hint="Search again with --layout uniform on the scores of this checkpoint, or without it: layers of "
            "different widths load with trust_remote_code=True, or optin_cli.load.",
        )
    return settings


def _require_decilm(checkpoint: Checkpoint, mask: Mask, name: str) -> None:
    """Refuse a mask that a config of DeciLM cannot state (ArtifactError)."""
    blueprint = checkpoint.blueprint
    shapes = cut_shapes(checkpoint.model, checkpoint.structure, mask.kept)
    problems = Sizes(shapes, blueprint.config).problems(blueprint.config, blueprint.model_class)
    if problems:
        raise ArtifactError(
            f"{name} has the layout deci, but {MODEL_CLASS} cannot express it:\n"
            + "\n".join(f"  {problem}" for problem in problems[:SHOWN]),
            hint="Search again with --layout deci on the scores of this checkpoint, or without it.",
        )


def cut_shapes(model: nn.Module, structure: Structure, kept: Keeping) -> dict[str, tuple[int, ...]]:
    """Shapes of the pruned weights, by name."""
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    for group in structure.groups:
        units = len(kept.get(group.name, range(group.units)))
        for piece in group.slices:
            if piece.parameter in shapes:
                shapes[piece.parameter][piece.axis] = units * piece.unit_width
    return {name: tuple(shape) for name, shape in shapes.items()}


def _differences(built: Mapping[str, tuple[int, ...]], cut: Mapping[str, tuple[int, ...]]) -> list[str]:
    return [
        f"{name} would be {_shape(cut.get(name))}, but the class builds {_shape(built.get(name))}"
        for name in dict.fromkeys([*cut, *built])
        if cut.get(name) != built.get(name)
    ]


def _shape(shape: tuple[int, ...] | None) -> str:
    return "nothing" if shape is None else " x ".join(map(str, shape))
