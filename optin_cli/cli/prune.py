"""`optin prune`: a smaller checkpoint folder by a mask, certified by a reload in a fresh process."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from optin_cli.cli import common
from optin_cli.cli.parameters import command
from optin_cli.errors import UsageError
from optin_cli.options.declare import Option, offer
from optin_cli.options.refit import RefitOptions

if TYPE_CHECKING:
    from optin_cli.artifacts.manifest import Manifest

CALIB = Option(
    "--calib",
    "Unlabelled texts or images to refit the cut layers on. (default: those that the mask was scored on)",
    metavar="TASK|PATH",
)


@command
def prune(
    checkpoint: common.CheckpointArgument,
    *,
    mask: Annotated[
        str, typer.Option("--mask", metavar="MASK", help="What optin search wrote; - for stdin.", show_default=False)
    ],
    output: common.Output = None,
    data: Annotated[common.Data, offer("path", "columns", "images", source=CALIB)],
    refit: Annotated[
        bool, typer.Option("--refit/--no-refit", help="Refit the cut layers by least squares, or keep their weights.")
    ] = True,
    options: RefitOptions,
    stream: common.Stream = None,
    threads: common.Threads = None,
    as_json: common.Json = False,
    opening: common.Opening,
    force: common.Force = False,
) -> None:
    """Cut the weights out, refit what reads them, save, and certify by reloading in a fresh process."""
    target = Path(output or f"{common.stem_of(checkpoint)}-pruned")
    if str(target) == common.STDIO:
        raise UsageError("A checkpoint is a folder and cannot go to stdout.", hint="Pass -o FOLDER.")
    common.require_free(target, force=force, inputs=(checkpoint, mask, *data.files, *opening.files), folder=True)
    from optin_cli.artifacts.base import parse
    from optin_cli.artifacts.mask import Mask
    from optin_cli.checkpoints.fresh import modules_of, reloading
    from optin_cli.files import read_bytes

    name = common.name_of(mask)
    read = parse(Mask, read_bytes(mask, "mask"), name)
    with reloading(modules_of(checkpoint)) as reload:  # so that it imports what this process imports, at the same time
        from optin_cli.pruning.calibration import RecordedData
        from optin_cli.pruning.parts import is_streamable
        from optin_cli.pruning.prune import prune as prune_checkpoint

        common.use_threads(threads)
        if stream is None and not is_streamable(read):
            stream = False
        opened = opening.load(checkpoint, stream=stream)
        named = data.spec()
        beside = None if mask == common.STDIO else Path(mask).parent
        samples = None if not refit else named if named.is_named else RecordedData(beside, data.images)
        with common.progress("pruning") as progress:
            manifest = prune_checkpoint(
                opened,
                read,
                target,
                refit=samples,
                options=options,
                force=force,
                name=name,
                reload=reload,
                progress=progress,
            )
    for line in summary(manifest):
        common.say(line)
    common.print_result(manifest.dump(), f"{str(target).rstrip('/')}/", as_json=as_json)


def summary(manifest: Manifest) -> list[str]:
    """What was pruned and how it was proved, in a line each."""
    before, after, certificate = manifest.before, manifest.after, manifest.certificate
    lines = [
        f"{after.macs / before.macs:.4f} of the MACs, {after.parameters / before.parameters:.4f} of the parameters, "
        f"{after.bytes / before.bytes:.4f} of the bytes; certified: reloaded outputs differ by "
        f"{certificate.reloaded:.2g} (tolerance {certificate.tolerance:.2g})"
    ]
    lines += [] if certificate.generation is None else [certificate.generation.words]
    lines += [] if certificate.note is None else [certificate.note]
    if manifest.layout != "ragged":
        lines.append(f"{manifest.layout} layout: loaded by {certificate.loader}")
    if manifest.refit is not None:
        taken = [r for r in manifest.refit.values() if r.kept]
        old, new = (sum(getattr(r, side) for r in taken) / max(len(taken), 1) for side in ("before", "after"))
        lines.append(
            f"refit {len(taken)} of {len(manifest.refit)} consumers: held-out error {old:.3g} -> {new:.3g} on average"
        )
    else:
        lines.append("not refitted: the weights that are left are those of the original")
    return lines
