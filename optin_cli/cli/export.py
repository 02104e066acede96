"""`optin export`: a checkpoint in; a certified file for a runtime, with its record, out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from optin_cli.cli import common, completion
from optin_cli.errors import UsageError
from optin_cli.exporting.registry import MODULES, target_named
from optin_cli.options.export import ExportOptions

if TYPE_CHECKING:
    from rich.table import Table

    from optin_cli.artifacts.export import Export


def export(
    checkpoint: common.CheckpointArgument,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="TARGET",
            help=f"Format to write: {', '.join(MODULES)}.",
            show_default=False,
            autocompletion=completion.targets,
        ),
    ],
    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            metavar="PATH",
            help="File or folder to write. (default: model.onnx, .pt2 or .xml in the checkpoint's folder)",
            show_default=False,
        ),
    ] = None,
    opset: Annotated[
        int | None, typer.Option(metavar="N", help="Version of ONNX operators. (default: the exporter's)")
    ] = None,
    seq_len: common.SeqLen = None,
    as_json: common.Json = False,
    arch: common.Arch = None,
    arch_args: common.ArchArgs = None,
    architecture: common.ArchitectureFile = None,
    force: common.Force = False,
) -> None:
    """Write a file that a runtime runs anywhere: ONNX, torch.export, OpenVINO. Certified in that runtime."""
    if output == common.STDIO:
        raise UsageError("An export is a file with its record beside it and cannot go to stdout.", hint="Pass -o PATH.")
    target = target_named(to)
    target.check_opset(opset)
    target.require((*target.writes_with, *target.runs_with))
    from optin_cli.exporting.paths import check_place, place_of

    beside = Path(checkpoint) if Path(checkpoint).is_dir() else Path(f"{common.stem_of(checkpoint)}-{to}")
    place = place_of(beside if output is None else Path(output), target)
    check_place(place, force=force)
    import optin_cli as api

    opened = common.open_checkpoint(checkpoint, arch, arch_args, architecture, "cpu")
    with common.progress("exporting") as progress:
        record = api.export(opened, to, place, options=ExportOptions(opset, seq_len), force=force, progress=progress)
    certificate, totals = record.certificate, record.totals
    common.say(
        f"{totals.macs:,} MACs ({record.workload.shape}), {totals.bytes:,} bytes; certified by {certificate.loader}: "
        f"outputs differ by {certificate.difference:.2g} over {len(certificate.probes)} shapes "
        f"(tolerance {certificate.tolerance:.2g})"
    )
    typer.echo(record.dump() if as_json else str(place), nl=not as_json)


def export_table(record: Export) -> Table:
    """What a file takes and gives, and how it was certified, for people."""
    from rich.table import Table

    opset = f", opset {record.opset}" if record.opset is not None else ""
    table = Table(
        title=f"{next(iter(record.files))}: {record.target}{opset}",
        caption=f"{record.totals.macs:,} MACs ({record.workload.shape}), {record.totals.bytes:,} bytes; certified by "
        f"{record.certificate.loader}: differs by {record.certificate.difference:.2g}",
    )
    for heading in ("", "tensor", "type", "shape"):
        table.add_column(heading, no_wrap=True)
    for what, tensors in (("takes", record.takes), ("gives", record.gives)):
        for name, tensor in tensors.items():
            table.add_row(what, name, tensor.dtype, " x ".join(map(str, tensor.shape)))
    return table
