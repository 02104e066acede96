"""`optin inspect`: what any artifact says, for people."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from optin_cli.cli import common
from optin_cli.errors import ArtifactError

if TYPE_CHECKING:
    from rich.table import Table

    from optin_cli.artifacts.base import Artifact


def inspect(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="Scores, part, mask, eval, sweep, profile or latency file, an export's record, or a pruned folder.",
            show_default=False,
        ),
    ],
    every: common.Every = False,
    as_json: common.Json = False,
) -> None:
    """Show what is in a file that optin wrote."""
    from optin_cli.checkpoints.folders import MANIFEST

    path = Path(file)
    if path.is_dir():
        path = path / MANIFEST
        if not path.is_file():
            raise ArtifactError(
                f"{file} has no {MANIFEST}, so optin did not write it.", hint="For a checkpoint, use optin profile."
            )
    from optin_cli.artifacts.reading import read_artifact
    from optin_cli.cli.tables import GROUPED, TABLES

    read = read_artifact(path)
    if as_json:
        common.show(read.head.dump(), newline=False)
        return
    kind = type(read.content)
    _print(read.head, GROUPED[kind](read.content, every=every) if kind in GROUPED else TABLES[kind](read.content))


def _print(artifact: Artifact, table: Table) -> None:
    console = common.console()
    schema = type(artifact).model_fields["schema_"].default
    console.print(f"{schema}, written by optin {artifact.optin_version}", style="bold")
    for role, source in artifact.inputs.items():
        console.print(f"  {role}: {source.name} (sha256 {source.sha256[:12]})")
    if artifact.options:
        console.print("  options: " + ", ".join(f"{k}={v}" for k, v in artifact.options.items()))
    console.print(table)
