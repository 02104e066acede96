"""`optin export`: a file for a runtime, certified in that runtime."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from optin_cli.cli import common, completion
from optin_cli.cli.parameters import command
from optin_cli.errors import UsageError
from optin_cli.exporting.registry import TARGETS, check_place, place_of, target_named
from optin_cli.options.declare import offer
from optin_cli.options.export import ExportOptions


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
        ),
    ],
    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            metavar="PATH",
            help="File or folder to write. (default: model.onnx, .pt2, .xml or .f16.gguf in the checkpoint's folder)",
            show_default=False,
        ),
    ] = None,
    options: ExportOptions,
    threads: common.Threads = None,
    as_json: common.Json = False,
    opening: Annotated[common.Opening, offer("arch", "arch_args", "architecture", "as_class", "image_size")],
    force: common.Force = False,
) -> None:
    """Write a file that a runtime runs anywhere: ONNX, torch.export, OpenVINO, GGUF. Certified in that runtime."""
    if output == common.STDIO:
        raise UsageError("An export is a file with its record beside it and cannot go to stdout.", hint="Pass -o PATH.")
    target = target_named(to)
    target.require_writing(options)
    beside = Path(checkpoint) if Path(checkpoint).is_dir() else Path(f"{common.stem_of(checkpoint)}-{to}")
    place = place_of(beside if output is None else Path(output), target, target.form(options))
    check_place(place, force=force)
    from optin_cli.exporting.export import export as export_checkpoint

    common.use_threads(threads)
    opened = replace(opening, device="cpu").load(checkpoint)
    with common.progress("exporting") as progress:
        record = export_checkpoint(opened, to, place, options=options, force=force, progress=progress)
    certificate, totals = record.unquantized or record.certificate, record.totals
    common.say(
        f"{totals.macs:,} MACs ({record.workload.shape}), {totals.bytes:,} bytes; certified by {certificate.loader}: "
        f"outputs differ by {certificate.difference:.2g} over {len(certificate.probes)} shapes "
        f"(tolerance {certificate.tolerance or 0:.2g})"
    )
    if target.half is not None and target.form(options) is None and totals.bytes > opened.weight_bytes:
        stored = str(opened.dtype).removeprefix("torch.")
        common.say(
            f"larger than the stored weights, {opened.weight_bytes:,} bytes in {stored}: the file holds float32. "
            "--dtype float16 makes it about half as large"
        )
    if record.unquantized is not None:
        common.say(
            f"so far in float32; with weights in {target.form(options)} they differ by "
            f"{record.certificate.difference:.2g}. What that does to a metric: optin eval {place} --task NAME "
            f"--against {opened.name}"
        )
    if (found := record.certificate.continuation) is not None:
        common.say(
            f"tokens of {found.texts} texts are the same; {found.agreed} of {found.tokens} tokens of greedy "
            f"continuations are the model's"
        )
    common.print_result(record.dump(), place, as_json=as_json)
