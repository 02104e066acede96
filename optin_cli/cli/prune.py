"""`optin prune`: a checkpoint and a mask in; a certified smaller checkpoint folder out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from optin_cli.cli import common
from optin_cli.errors import UsageError


def prune(
    checkpoint: common.CheckpointArgument,
    mask: Annotated[
        str,
        typer.Option("--mask", metavar="MASK", help="What optin search wrote; - for stdin.", show_default=False),
    ],
    output: common.Output = None,
    as_json: common.Json = False,
    arch: common.Arch = None,
    architecture: common.ArchitectureFile = None,
    device: common.Device = None,
    force: common.Force = False,
) -> None:
    """Cut the weights out, save, and certify by reloading in a fresh process."""
    target = Path(output or f"{common.stem_of(checkpoint)}-pruned")
    if str(target) == common.STDIO:
        raise UsageError("A checkpoint is a folder and cannot go to stdout.", hint="Pass -o FOLDER.")
    common.require_free(target, force=force, folder=True)
    from optin_cli.artifacts import Mask, parse
    from optin_cli.files import read_bytes

    name = "stdin" if mask == common.STDIO else Path(mask).name
    read = parse(Mask, read_bytes(mask, "mask"), name)
    from optin_cli import api

    opened = common.open_checkpoint(checkpoint, arch, architecture, device)
    with common.progress("pruning") as tell:
        manifest = api.prune(opened, read, target, force=force, name=name, progress=lambda what: tell(0, 1, what))
    before, after, certificate = manifest.before, manifest.after, manifest.certificate
    common.say(
        f"{after.macs / before.macs:.4f} of the MACs, {after.parameters / before.parameters:.4f} of the parameters, "
        f"{after.bytes / before.bytes:.4f} of the bytes; certified: reloaded outputs differ by "
        f"{certificate.reloaded:.2g} (tolerance {certificate.tolerance:.2g})"
    )
    typer.echo(manifest.dump() if as_json else f"{str(target).rstrip('/')}/", nl=not as_json)
