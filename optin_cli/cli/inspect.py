"""`optin inspect`: any artifact in; what it says, for people, out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from optin_cli.cli import common
from optin_cli.errors import ArtifactError

if TYPE_CHECKING:
    from rich.table import Table

    from optin_cli.artifacts.base import Artifact
    from optin_cli.artifacts.manifest import Manifest
    from optin_cli.artifacts.mask import Mask
    from optin_cli.artifacts.scores import Scores


def inspect(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="Scores, mask, eval, sweep, profile or latency file, an export's record, or a pruned folder.",
            show_default=False,
        ),
    ],
    as_json: common.Json = False,
) -> None:
    """What an artifact says."""
    from optin_cli.checkpoints.folders import MANIFEST

    path = Path(file)
    if path.is_dir():
        path = path / MANIFEST
        if not path.is_file():
            raise ArtifactError(
                f"{file} has no {MANIFEST}, so optin did not write it.",
                hint="For a checkpoint, use optin profile.",
            )
    from optin_cli.artifacts.reading import read_artifact
    from optin_cli.artifacts.scores import Scores

    read = read_artifact(path)
    if as_json:
        typer.echo(read.head.dump(), nl=False)
    elif isinstance(read.content, Scores):
        _print(read.head, _scores_table(read.content))
    else:
        _print(read.head, _table(read.content))


def _print(artifact: Artifact, table: Table) -> None:
    console = common.stdout()
    schema = type(artifact).model_fields["schema_"].default
    console.print(f"{schema}, written by optin {artifact.optin_version}", style="bold")
    for role, source in artifact.inputs.items():
        console.print(f"  {role}: {source.name} (sha256 {source.sha256[:12]})")
    if artifact.options:
        console.print("  options: " + ", ".join(f"{k}={v}" for k, v in artifact.options.items()))
    console.print(table)


def _table(artifact: Artifact) -> Table:
    from optin_cli.artifacts.costs import Profile
    from optin_cli.artifacts.evaluation import Evaluation
    from optin_cli.artifacts.export import Export
    from optin_cli.artifacts.latency import LatencyTable
    from optin_cli.artifacts.manifest import Manifest
    from optin_cli.artifacts.mask import Mask
    from optin_cli.artifacts.sweep import Sweep
    from optin_cli.cli.eval import evaluation_table
    from optin_cli.cli.export import export_table
    from optin_cli.cli.profile import latency_table, profile_table
    from optin_cli.cli.sweep import sweep_table

    if isinstance(artifact, Evaluation):
        return evaluation_table(artifact)
    if isinstance(artifact, LatencyTable):
        return latency_table(artifact)
    if isinstance(artifact, Profile):
        return profile_table(artifact)
    if isinstance(artifact, (Mask, Manifest)):
        return _mask_table(artifact)
    if isinstance(artifact, Export):
        return export_table(artifact)
    if isinstance(artifact, Sweep):
        return sweep_table(artifact)
    raise TypeError(type(artifact).__name__)


def _mask_table(artifact: Mask | Manifest) -> Table:
    from rich.table import Table

    reached = ", ".join(f"{share:.4f} of the {name}" for name, share in artifact.budget.reached.items())
    certificate = getattr(artifact, "certificate", None)
    proof = f"; certified within {certificate.reloaded:.2g}" if certificate else ""
    table = Table(title=f"keeps {reached}{proof}")
    table.add_column("group", no_wrap=True)
    table.add_column("kept", justify="right")
    table.add_column("of", justify="right")
    table.add_column("share", justify="right")
    for name, group in artifact.groups.items():
        table.add_row(name, f"{len(group.kept):,}", f"{group.units:,}", f"{len(group.kept) / group.units:.0%}")
    return table


def _scores_table(scores: Scores) -> Table:
    from rich.table import Table

    caption = "error: median standard error / importance"
    if (exchange := scores.header.token_exchange) is not None:
        caption += (
            f"; tokens' importances were multiplied by {exchange.rate:.3g}: at {exchange.share:.3g} of the MACs, "
            f"refitted, cut units lost {exchange.units_distance:.3g} for an importance of {exchange.units_lost:.3g}, "
            f"merging {exchange.tokens_distance:.3g} for {exchange.tokens_lost:.3g}"
        )
    table = Table(title=f"{scores.header.criterion} importance", caption=caption)
    table.add_column("group", no_wrap=True)
    for heading in ("units", "estimator", "samples", "least", "median", "most", "error"):
        table.add_column(heading, justify="right")
    for name, group in scores.header.groups.items():
        values = scores.importance[name]
        error = "-"
        if name in scores.standard_error:
            share = scores.standard_error[name][values > 0] / values[values > 0]
            error = f"{sorted(share)[len(share) // 2]:.1%}" if len(share) else "-"
        ordered = sorted(values)
        numbers = (f"{v:.3g}" for v in (ordered[0], ordered[len(ordered) // 2], ordered[-1]))
        table.add_row(name, f"{group.units:,}", group.estimator, f"{group.samples:,}", *numbers, error)
    return table
