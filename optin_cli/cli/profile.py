"""`optin profile`: a checkpoint in; a table of what costs MACs and parameters, and what can be pruned, out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from optin_cli.cli import common

if TYPE_CHECKING:
    from rich.table import Table

    from optin_cli.artifacts import Profile


def profile(
    checkpoint: common.CheckpointArgument,
    output: common.Output = None,
    seq_len: common.SeqLen = None,
    as_json: common.Json = False,
    arch: common.Arch = None,
    arch_args: common.ArchArgs = None,
    architecture: common.ArchitectureFile = None,
    device: common.Device = None,
    force: common.Force = False,
) -> None:
    """What costs FLOPs, and what can be pruned."""
    if output is not None:
        common.require_free(output, force=force)
    from optin_cli import api
    from optin_cli.files import write_text

    result = api.profile(common.open_checkpoint(checkpoint, arch, arch_args, architecture, device), seq_len=seq_len)
    if output is not None:
        write_text(output, result.dump(), force=force)
    if as_json and output != common.STDIO:
        typer.echo(result.dump(), nl=False)
    elif output is None:
        common.stdout().print(profile_table(result))
    elif output != common.STDIO:
        typer.echo(output)


def profile_table(result: Profile) -> Table:
    """The profile as a table for people."""
    from rich.table import Table

    totals = result.totals
    table = Table(
        title=f"{result.inputs['checkpoint'].name}: {totals.macs / 1e6:,.1f} M MACs, "
        f"{totals.parameters / 1e6:,.2f} M parameters, {totals.bytes / 1e6:,.1f} MB",
        caption=f"MACs are multiply-accumulates at batch {result.workload.batch_size}, {result.workload.shape}; "
        "shares are of the whole model.",
    )
    table.add_column("group", no_wrap=True)
    for heading in ("units", "MACs/unit", "params/unit", "MACs", "share", "params", "share"):
        table.add_column(heading, justify="right")
    macs = parameters = 0.0
    for name, group in result.groups.items():
        group_macs, group_parameters = group.units * group.unit_macs, group.units * group.unit_parameters
        macs, parameters = macs + group_macs, parameters + group_parameters
        table.add_row(
            name,
            f"{group.units:,}",
            f"{group.unit_macs:,.0f}",
            f"{group.unit_parameters:,}",
            *_share(group_macs, totals.macs),
            *_share(group_parameters, totals.parameters),
        )
    table.add_section()
    for name, m, p in (
        ("prunable", macs, parameters),
        ("cannot be pruned", totals.macs - macs, totals.parameters - parameters),
    ):
        table.add_row(name, "", "", "", *_share(m, totals.macs), *_share(p, totals.parameters))
    return table


def _share(part: float, whole: float) -> tuple[str, str]:
    return f"{part / 1e6:,.2f} M", f"{part / whole:.1%}"
