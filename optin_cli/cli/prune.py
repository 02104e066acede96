"""`optin prune`: a checkpoint and a mask in; a certified smaller checkpoint folder out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from optin_cli.cli import common
from optin_cli.errors import UsageError
from optin_cli.options.images import ImageOptions
from optin_cli.options.refit import RefitOptions

DEFAULTS = RefitOptions()


def prune(
    checkpoint: common.CheckpointArgument,
    mask: Annotated[
        str,
        typer.Option("--mask", metavar="MASK", help="What optin search wrote; - for stdin.", show_default=False),
    ],
    output: common.Output = None,
    calib: Annotated[
        str | None,
        typer.Option(
            "--calib",
            metavar="TASK|PATH",
            help="Unlabelled texts or images to refit the cut layers on. (default: no refit)",
        ),
    ] = None,
    refit: Annotated[
        bool, typer.Option("--refit/--no-refit", help="Refit by least squares if there is --calib.")
    ] = True,
    refit_ridge: Annotated[
        float | None, typer.Option(help="Ridge of the refit, relative. (default: by held-out error)")
    ] = None,
    add_bias: Annotated[
        bool, typer.Option("--add-bias", help="Give refitted layers that have no bias one.")
    ] = DEFAULTS.add_bias,
    samples: Annotated[int, typer.Option(help="Samples to refit on.")] = DEFAULTS.samples,
    batch_size: Annotated[int, typer.Option(help="Samples at once.")] = DEFAULTS.batch_size,
    max_length: Annotated[int | None, typer.Option(help="Longest sample, in tokens. (default: 128)")] = None,
    data: common.Data = None,
    text_columns: common.TextColumns = None,
    max_unreadable: common.MaxUnreadable = common.MAX_UNREADABLE,
    seed: common.Seed = DEFAULTS.seed,
    as_json: common.Json = False,
    arch: common.Arch = None,
    arch_args: common.ArchArgs = None,
    architecture: common.ArchitectureFile = None,
    device: common.Device = None,
    force: common.Force = False,
) -> None:
    """Cut the weights out, refit what reads them, save, and certify by reloading in a fresh process."""
    target = Path(output or f"{common.stem_of(checkpoint)}-pruned")
    if str(target) == common.STDIO:
        raise UsageError("A checkpoint is a folder and cannot go to stdout.", hint="Pass -o FOLDER.")
    common.require_free(target, force=force, folder=True)
    from optin_cli.artifacts.base import parse
    from optin_cli.artifacts.mask import Mask
    from optin_cli.files import read_bytes

    name = "stdin" if mask == common.STDIO else Path(mask).name
    read = parse(Mask, read_bytes(mask, "mask"), name)
    import optin_cli as api
    from optin_cli.data.spec import DataSpec

    opened = common.open_checkpoint(checkpoint, arch, arch_args, architecture, device)
    options = RefitOptions(samples, refit_ridge, batch_size, max_length, seed, add_bias)
    with common.progress("pruning") as progress:
        manifest = api.prune(
            opened,
            read,
            target,
            refit=DataSpec(
                calib if refit else None,
                data if refit else None,
                common.columns_of(text_columns),
                images=ImageOptions(max_unreadable=max_unreadable),
            ),
            options=options,
            force=force,
            name=name,
            progress=progress,
        )
    before, after, certificate = manifest.before, manifest.after, manifest.certificate
    common.say(
        f"{after.macs / before.macs:.4f} of the MACs, {after.parameters / before.parameters:.4f} of the parameters, "
        f"{after.bytes / before.bytes:.4f} of the bytes; certified: reloaded outputs differ by "
        f"{certificate.reloaded:.2g} (tolerance {certificate.tolerance:.2g})"
    )
    if manifest.layout == "uniform":
        common.say(f"uniform layout: loaded by {certificate.loader}")
    if manifest.refit is not None:
        taken = [r for r in manifest.refit.values() if r.kept]
        before_error, after_error = (
            sum(getattr(r, side) for r in taken) / max(len(taken), 1) for side in ("before", "after")
        )
        common.say(
            f"refit {len(taken)} of {len(manifest.refit)} consumers: held-out error "
            f"{before_error:.3g} -> {after_error:.3g} on average"
        )
    typer.echo(manifest.dump() if as_json else f"{str(target).rstrip('/')}/", nl=not as_json)
