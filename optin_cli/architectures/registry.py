"""Look up architecture descriptions, one JSON file per model family."""

import functools
import json
from pathlib import Path

from pydantic import ValidationError

from optin_cli.architectures.schema import Architecture, BackboneRule, EarlierRule, HeadRule, StackRule
from optin_cli.errors import ArchitectureError, did_you_mean, problems

FOLDER = Path(__file__).parent
HEADS_FILE = FOLDER / "heads.json"


def parse_architecture(path: Path) -> Architecture:
    """Read and validate one description; every problem in it is reported at once."""
    try:
        architecture = Architecture.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ArchitectureError(f"The architecture file {path} cannot be read: {error.strerror}.") from error
    except ValidationError as error:
        raise ArchitectureError(
            f"{path} is not a valid architecture description:\n{problems(error)}",
            hint=f"Start from one of those in {FOLDER.name}/ of the package, such as bert.json.",
        ) from error
    if architecture.stacks_of is not None:
        other = _described(architecture.stacks_of, path)
        return architecture.model_copy(
            update={"stacks": other.stacks, "earlier": architecture.earlier or other.earlier}
        )
    stacks, earlier = [*architecture.stacks], architecture.earlier
    for rule in reversed(architecture.backbones):
        other = _described(rule.stacks_of, path)
        stacks = [*(_moved(stack, rule) for stack in other.stacks), *stacks]
        if other.earlier is not None:
            earlier = other.earlier.under(rule.at, rule.earlier_at or rule.at).beside(earlier or EarlierRule())
    return architecture.model_copy(update={"stacks": stacks, "earlier": earlier})


def _described(family: str, path: Path) -> Architecture:
    """The description of another family (ArchitectureError if there is none). path: the file that takes its stacks."""
    shared = FOLDER / f"{family}.json"
    if not shared.exists():
        names = (p.stem for p in FOLDER.glob("*.json") if p != HEADS_FILE)
        raise ArchitectureError(
            f"{path} takes its stacks from {family!r}, which is not described.",
            hint=did_you_mean(family, names),
        )
    return parse_architecture(shared)


def _moved(stack: StackRule, backbone: BackboneRule) -> StackRule:
    """A stack of a backbone, as a description of the whole model states it."""
    paths = {
        key: path and f"{backbone.at}.{path}"
        for key, path in (("blocks", stack.blocks), ("after_last", stack.after_last))
    }
    return stack.model_copy(update={"name": f"backbone-{stack.name}", "optional": True, "tokens": None, **paths})


@functools.cache
def known_families() -> dict[str, Architecture]:
    """Every shipped description, by the name of its file."""
    files = sorted(p for p in FOLDER.glob("*.json") if p != HEADS_FILE)
    return {path.stem: parse_architecture(path) for path in files}


@functools.cache
def known_architectures(library: str = "transformers") -> dict[str, Architecture]:
    """Every shipped description of a library's models, by model type."""
    return {kind: a for a in known_families().values() if a.library == library for kind in a.model_types}


def find_architecture(model_type: str, library: str = "transformers") -> Architecture:
    """The description of a library's model type.

    Raises ArchitectureError: no shipped file has it, in which case the closest is named, or it cannot be pruned.
    """
    known = known_architectures(library)
    refused = {kind: why for architecture in known.values() for kind, why in architecture.refused_types.items()}
    if model_type in refused:
        raise ArchitectureError(f"Models of type {model_type!r} cannot be pruned: {refused[model_type]}.")
    if model_type not in known:
        raise ArchitectureError(
            f"No architecture description covers model type {model_type!r}.",
            hint=f"{did_you_mean(model_type, known)} A family is described by one JSON file: copy the nearest "
            f"one ({FOLDER.name}/*.json in the package), adapt its paths, and pass --architecture my.json.",
        )
    return known[model_type]


def find_head(auto_class: str, model_class: str) -> HeadRule:
    """What a model class puts out that an auto class loads."""
    return known_heads()[auto_class].for_class(model_class)


@functools.cache
def known_heads() -> dict[str, HeadRule]:
    """What each kind of model head puts out, by transformers' auto class name."""
    raw = json.loads(HEADS_FILE.read_text(encoding="utf-8"))
    return {name: HeadRule.model_validate(rule) for name, rule in raw.items()}
