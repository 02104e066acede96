"""`optin profile`: a checkpoint in; what its units cost out: MACs and parameters, or time measured here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from optin_cli.cli import common
from optin_cli.errors import UsageError
from optin_cli.options.latency import LatencyOptions

if TYPE_CHECKING:
    from rich.table import Table

    from optin_cli.artifacts.costs import Profile
    from optin_cli.artifacts.latency import LatencyTable
    from optin_cli.checkpoints.checkpoint import Checkpoint


DEFAULTS = LatencyOptions()


def profile(
    checkpoint: common.CheckpointArgument,
    output: common.Output = None,
    seq_len: common.SeqLen = None,
    latency: Annotated[
        bool,
        typer.Option("--latency", help="Measure the time of each group's units on this device, for search."),
    ] = False,
    batch: Annotated[
        int | None, typer.Option(metavar="N", help=f"Samples at once, with --latency. (default: {DEFAULTS.batch_size})")
    ] = None,
    runs: Annotated[
        int | None, typer.Option(metavar="N", help=f"Timed runs of each size. (default: {DEFAULTS.runs})")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(metavar="N", help="CPU threads, with --latency. (default: all cores)")
    ] = None,
    as_json: common.Json = False,
    arch: common.Arch = None,
    arch_args: common.ArchArgs = None,
    architecture: common.ArchitectureFile = None,
    device: common.Device = None,
    force: common.Force = False,
) -> None:
    """What costs FLOPs (or time, with --latency), and what can be pruned."""
    given = {"--batch": batch, "--runs": runs, "--threads": threads}
    if not latency and (extra := [name for name, value in given.items() if value is not None]):
        raise UsageError(f"{extra[0]} says how time is measured.", hint="Pass --latency with it.")
    if latency:
        if threads is not None and threads < 1:
            raise UsageError(f"--threads is {threads}; expected 1 or more.")
        options = LatencyOptions(
            DEFAULTS.batch_size if batch is None else batch, DEFAULTS.runs if runs is None else runs
        )
        to_stdout = output == common.STDIO or (as_json and output is None)
        target = common.STDIO if to_stdout else output or f"{common.stem_of(checkpoint)}.latency.json"
        common.require_free(target, force=force)
        import torch

        if threads is not None:
            torch.set_num_threads(threads)
        opened = common.open_checkpoint(checkpoint, arch, arch_args, architecture, device)
        _measure(opened, target, seq_len, options, as_json=as_json, force=force)
        return
    if output is not None:
        common.require_free(output, force=force)
    import optin_cli as api
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


def _measure(
    checkpoint: Checkpoint, target: str, seq_len: int | None, options: LatencyOptions, *, as_json: bool, force: bool
) -> None:
    import optin_cli as api
    from optin_cli.files import write_text

    with common.progress("measuring") as progress:
        result = api.profile_latency(checkpoint, seq_len=seq_len, options=options, progress=progress)
    write_text(target, result.dump(), force=force)
    common.stderr().print(latency_table(result))
    if target != common.STDIO:
        typer.echo(result.dump() if as_json else target, nl=not as_json)


def latency_table(result: LatencyTable) -> Table:
    """Measured times as a table for people; layers of the same shapes have the same times."""
    from rich.table import Table

    work = result.workload
    table = Table(
        title=f"{result.inputs['checkpoint'].name}: {result.total_ms:.2f} ms",
        caption=f"batch {work.batch_size}, {work.shape}, {result.timed_on}; times are what that many kept units add.",
    )
    table.add_column("group", no_wrap=True)
    table.add_column("kept units: ms")
    table.add_column("share", justify="right")
    for name, ladder in result.groups.items():
        steps = "  ".join(f"{units:,}: {ms:.3f}" for units, ms in zip(ladder.units, ladder.ms, strict=True))
        table.add_row(name, steps, f"{ladder.curve()[-1] / result.total_ms:.1%}")
    return table


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
