"""`optin prune`: a smaller checkpoint folder by a mask, certified by a reload in a fresh process."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from optin_cli.cli import common, launched
from optin_cli.cli.parameters import command
from optin_cli.errors import UsageError
from optin_cli.files import state_of
from optin_cli.options.declare import DATA, METHOD, Option, offer
from optin_cli.options.refit import RefitOptions

if TYPE_CHECKING:
    from optin_cli.artifacts.manifest import Manifest

CALIB = Option(
    "--calib",
    "Unlabelled texts or images to adjust the cut layers on.",
    metavar="TASK|PATH",
    unset="those that the mask was scored on",
)


@command
def prune(
    context: typer.Context,
    checkpoint: common.CheckpointArgument,
    *,
    mask: Annotated[
        str,
        typer.Option(
            "--mask",
            metavar="MASK",
            help="What optin search wrote; - for stdin.",
            show_default=False,
            rich_help_panel=DATA,
        ),
    ],
    output: Annotated[str | None, common.output("NAME-pruned", "Folder to write.")] = None,
    data: Annotated[common.Data, offer("path", "columns", "images", source=CALIB)],
    refit: Annotated[
        bool,
        common.flag("--refit/--no-refit", "Adjust the cut layers by least squares, or keep their weights.", METHOD),
    ] = True,
    options: RefitOptions,
    resume: common.Resume = False,
    stream: common.Stream = None,
    threads: common.Threads = None,
    as_json: common.Json = False,
    opening: common.Opening,
    force: common.Force = False,
) -> None:
    """Write the smaller model: remove the units, adjust the rest, check that it reloads."""
    target = Path(output or f"{common.stem_of(checkpoint)}-pruned")
    if str(target) == common.STDIO:
        raise UsageError("A checkpoint is a folder and cannot go to stdout.", hint="Pass -o FOLDER.")
    common.require_free(target, force=force, inputs=(checkpoint, mask, *data.files, *opening.files), folder=True)
    if stream and context.obj is not None:
        raise UsageError("A run that is shared is not streamed.", hint="Leave out --stream, or torchrun.")
    state = state_of(target)
    with common.resumable(state), common.progress("pruning") as progress:
        stage = common.Stage(progress)
        from optin_cli.artifacts.base import parse
        from optin_cli.artifacts.mask import Mask
        from optin_cli.checkpoints.fresh import modules_of, reloading
        from optin_cli.files import read_bytes

        name = common.name_of(mask)
        read = parse(Mask, read_bytes(mask, "mask"), name)
        # It imports what this process imports, at the same time.
        starting = reloading(modules_of(checkpoint)) if launched.leads() else contextlib.nullcontext()
        with starting as reload:
            from optin_cli.pruning.calibration import RecordedData
            from optin_cli.pruning.parts import is_streamable
            from optin_cli.pruning.prune import prune as prune_checkpoint

            common.use_threads(threads)
            if stream is None and (context.obj is not None or not is_streamable(read)):
                stream = False
            opened = opening.load(checkpoint, context, stream=stream)
            if resume and opened.streaming is None:
                raise UsageError(
                    f"{checkpoint} is pruned in memory, and only streamed runs keep what is finished.",
                    hint="Leave out --resume, or pass --stream.",
                )
            named = data.spec()
            beside = None if mask == common.STDIO else Path(mask).parent
            samples = None if not refit else named if named.is_named else RecordedData(beside, data.images)
            manifest = prune_checkpoint(
                opened,
                read,
                target,
                refit=samples,
                options=options,
                force=force,
                name=name,
                reload=reload,
                state=state,
                resume=resume,
                progress=stage,
            )
        took = stage.took(opened.device)
    if not opened.processes.leads:
        return
    folder = f"{str(target).rstrip('/')}/"
    then = ["eval", folder, "--against", checkpoint, "--data", "PATH", "# or --task NAME"]
    common.finish(f"prune {checkpoint}", summary(manifest), took, then=[then])
    common.print_result(manifest.dump_with(took), folder, as_json=as_json)


def summary(manifest: Manifest) -> list[str]:
    """What was pruned and how it was checked, in a line each."""
    before, after, certificate = manifest.before, manifest.after, manifest.certificate
    same = f"outputs that differ by {certificate.reloaded:.2g} (tolerance {certificate.tolerance:.2g})"
    lines = [
        f"keeps {after.macs / before.macs:.1%} of compute (MACs), {after.parameters / before.parameters:.1%} of "
        f"parameters, {after.bytes / before.bytes:.1%} of bytes",
        f"checked: reloads in a fresh process with {same if certificate.reloaded else 'identical outputs'}",
    ]
    lines += [] if certificate.generation is None else [certificate.generation.words]
    lines += [] if certificate.note is None else [certificate.note]
    if manifest.layout != "ragged":
        lines.append(f"{manifest.layout} layout: loaded by {certificate.loader}")
    if manifest.refit is not None:
        taken = [r for r in manifest.refit.values() if r.kept]
        old, new = (sum(getattr(r, side) for r in taken) / max(len(taken), 1) for side in ("before", "after"))
        gain = f": error on unseen samples {old / new:.1f} times lower" if new else ""
        lines.append(f"adjusted {len(taken)} of {len(manifest.refit)} layers{gain}")
    else:
        lines.append("not refitted: the weights that are left are those of the original")
    return lines
