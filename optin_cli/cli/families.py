"""`optin families`: which models can be pruned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from optin_cli.cli import common
from optin_cli.options.scoring import UNITS

if TYPE_CHECKING:
    from optin_cli.architectures.schema import Architecture, StackRule


def families(
    name: Annotated[
        str | None,
        typer.Argument(metavar="FAMILY", help="The one to explain, or a model type.", show_default="list all"),
    ] = None,
    as_json: common.Json = False,
) -> None:
    """List the families of models that can be pruned, or explain one."""
    from optin_cli.architectures.registry import FOLDER, known_families
    from optin_cli.artifacts.base import to_json
    from optin_cli.errors import ArchitectureError, did_you_mean

    known = known_families()
    if name is None:
        if as_json:
            common.show(to_json([_facts(each) for each in known.values()]))
        else:
            _print_all([*known.values()])
        return
    files = {kind: file for file, each in known.items() for kind in (*each.model_types, file)}
    if name not in files:
        raise ArchitectureError(f"No family or model type is named {name!r}.", hint=did_you_mean(name, files))
    if as_json:  # to start a description of one's own from
        common.show((FOLDER / f"{files[name]}.json").read_text(encoding="utf-8"), newline=False)
        return
    for line in _explained(known[files[name]]):
        common.show(line)


def _facts(family: Architecture) -> dict[str, object]:
    """What the list says of a family, by name."""
    return {
        "family": family.family,
        "library": family.library,
        "model_types": [*family.model_types],
        "units": _units(family.stacks),
    }


def _units(stacks: list[StackRule]) -> list[str]:
    """What can be pruned, as score --units calls it."""
    kinds = {group.kind for stack in stacks for group in stack.groups}
    more = {
        "head-dim": any(group.query_key for stack in stacks for group in stack.groups),
        "token": any(stack.tokens for stack in stacks),
        "block": any(stack.depth for stack in stacks),
    }
    return [name for name, kind in UNITS.items() if kind in kinds or more.get(kind)]


def _print_all(found: list[Architecture]) -> None:
    from optin_cli.cli.fitting import FittingTable

    table = FittingTable(caption="model types: model_type in config.json, or the class of timm's model")
    table.add_names("family", whole=True)
    table.add_names("library", whole=True)
    table.add_names("model types")
    table.add_names("units")
    for family in found:
        table.add_row(family.family, family.library, ", ".join(family.model_types), ", ".join(_units(family.stacks)))
    common.console().print(table)


def _explained(family: Architecture) -> list[str]:
    """What a description says, in a line each."""
    lines = [f"{family.family}: models of {family.library} of type {', '.join(family.model_types)}"]
    for stack in family.stacks:
        lines.append(f"{stack.name}: {stack.blocks}: {', '.join(_units([stack]))}")
        stated = {group.kind for group in stack.groups if group.config is not None}
        cut = ", ".join(name for name, kind in UNITS.items() if kind in stated)
        lines.append(f"  --layout uniform, which the stock class loads, cuts {cut or 'nothing'}")
    lines += [f"not {kind}: {why}" for kind, why in family.refused_types.items()]
    lines.append("your own family: start from this one's description, --json > mine.json, and pass --architecture")
    return lines
