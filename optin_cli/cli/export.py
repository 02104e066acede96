"""`optin export`: a file for a runtime, certified in that runtime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from optin_cli.cli import common, completion
from optin_cli.cli.parameters import command
from optin_cli.errors import UsageError
from optin_cli.exporting.registry import TARGETS, check_place, place_of, target_named
from optin_cli.options.declare import METHOD, OUTPUT, offer
from optin_cli.options.export import ExportOptions

if TYPE_CHECKING:
    from optin_cli.artifacts.export import Export
    from optin_cli.checkpoints.checkpoint import Checkpoint
    from optin_cli.exporting.registry import Target


@command
def export(
    checkpoint: common.CheckpointArgument,
    *,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="TARGET",
            help=f"Format to write: {', '.join(TARGETS)}.",
            show_default=False,
            autocompletion=completion.targets,
            rich_help_panel=METHOD,
        ),
    ],
    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            metavar="PATH",
            help="File or folder to write.",
            show_default="model.onnx, .pt2, .xml or .f16.gguf in the checkpoint's folder",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    options: ExportOptions,
    threads: common.Threads = None,
    as_json: common.Json = False,
    opening: Annotated[common.Opening, offer("arch", "arch_args", "architecture", "as_class", "image_size")],
    force: common.Force = False,
) -> None:
    """Write a file for a runtime (ONNX, torch.export, OpenVINO, GGUF), checked in that runtime."""
    if output == common.STDIO:
        raise UsageError("An export is a file with its record beside it and cannot go to stdout.", hint="Pass -o PATH.")
    with common.progress("exporting") as progress:
        stage = common.Stage(progress)
        target = target_named(to)
        target.require_writing(options)
        beside = Path(checkpoint) if Path(checkpoint).is_dir() else Path(f"{common.stem_of(checkpoint)}-{to}")
        place = place_of(beside if output is None else Path(output), target, target.form(options))
        check_place(place, force=force)
        from optin_cli.exporting.export import export as export_checkpoint

        common.use_threads(threads)
        opened = replace(opening, device="cpu").load(checkpoint)
        record = export_checkpoint(opened, to, place, options=options, force=force, progress=stage)
        took = stage.took(opened.device)
    then = ["eval", place, "--against", checkpoint, "--data", "PATH", "# or --task NAME"]
    remarks = [*_larger(opened, record, target, options), *uneven(opened, target)]
    made = [*_proof(record, target.form(options)), *remarks]
    common.finish(f"export {checkpoint}", made, took, then=[then])
    common.print_result(record.dump_with(took), place, as_json=as_json)


def _larger(opened: Checkpoint, record: Export, target: Target, options: ExportOptions) -> list[str]:
    """A remark on a file of float32 whose checkpoint is stored in fewer bits, and on the way out."""
    if target.half is None or target.form(options) is not None or record.totals.bytes <= opened.weight_bytes:
        return []
    if opened.dtype.itemsize >= 4:  # then it is the program beside the weights that makes it larger
        return []
    stored = str(opened.dtype).removeprefix("torch.")
    return [
        f"larger than the stored weights, {opened.weight_bytes:,} bytes in {stored}: the file holds float32; "
        "--dtype float16 makes it about half as large"
    ]


def uneven(opened: Checkpoint, target: Target) -> list[str]:
    """A remark on widths that the runtime multiplies slowly, and on the way to others."""
    widths = [group.width for group in opened.structure.groups if group.kind == "neuron"]
    odd = [width for width in widths if width % target.even]
    if not odd:
        return []
    return [
        f"the FFNs of {len(odd)} of {len(widths)} blocks have widths that are no multiples of {target.even}, which "
        f"{target.runtime} multiplies slowly; search --round-to {target.even} finds others"
    ]


def _proof(record: Export, form: str | None) -> list[str]:
    """What was written and how it was checked, in a line each. form: of the weights."""
    certificate, totals = record.unquantized or record.certificate, record.totals
    lines = [
        f"{totals.macs:,} MACs ({record.workload.shape}), {totals.bytes:,} bytes",
        f"certified by {certificate.loader}: outputs differ by {certificate.difference:.2g} over "
        f"{len(certificate.probes)} shapes (tolerance {certificate.tolerance or 0:.2g})",
    ]
    if record.unquantized is not None:
        lines.append(
            f"so far in float32; with weights in {form} they differ by {record.certificate.difference:.2g}; what that "
            "does to a metric, optin eval says"
        )
    if (found := record.certificate.continuation) is not None:
        lines.append(
            f"tokens of {found.texts} texts are the same; {found.agreed} of {found.tokens} tokens of greedy "
            f"continuations are the model's"
        )
    return lines
