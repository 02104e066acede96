"""`optin profile`: what the units of a checkpoint cost in MACs and parameters, or in time measured here."""

from typing import Annotated

import typer

from optin_cli.cli import common
from optin_cli.cli.parameters import command, given_flags
from optin_cli.errors import UsageError
from optin_cli.options.latency import LatencyOptions


@command
def profile(
    context: typer.Context,
    checkpoint: common.CheckpointArgument,
    *,
    output: common.Output = None,
    seq_len: common.SeqLen = None,
    latency: Annotated[
        bool, typer.Option("--latency", help="Measure the time of each group's units on this device, for search.")
    ] = False,
    options: LatencyOptions,
    threads: Annotated[
        int | None, typer.Option(metavar="N", help="CPU threads, with --latency. (default: all cores)")
    ] = None,
    stream: common.Stream = None,
    as_json: common.Json = False,
    opening: common.Opening,
    force: common.Force = False,
) -> None:
    """What costs FLOPs (or time, with --latency), and what can be pruned."""
    given = [*given_flags(context, LatencyOptions), *(["--threads"] if threads is not None else [])]
    if given and not latency:
        raise UsageError(f"{given[0]} says how time is measured.", hint="Pass --latency with it.")
    if latency and stream:
        raise UsageError("Time is not measured of a model that is streamed.", hint="Leave out --latency or --stream.")
    if latency:
        output = common.target_of(output, f"{common.stem_of(checkpoint)}.latency.json", as_json=as_json)
    if output is not None:
        common.require_free(output, force=force, inputs=(checkpoint, *opening.files))
    common.use_threads(threads)
    from optin_cli.cli.tables import latency_table, profile_table
    from optin_cli.files import write_text
    from optin_cli.profiling.latency import profile_latency
    from optin_cli.profiling.profile import profile as measure_costs

    opened = opening.load(checkpoint, stream=False if latency else stream)
    if latency:
        with common.progress("measuring") as progress:
            times = profile_latency(opened, seq_len=seq_len, options=options, progress=progress)
        made, table = times.dump(), latency_table(times)
    else:
        costs = measure_costs(opened, seq_len=seq_len)
        made, table = costs.dump(), profile_table(costs)
    if output is not None:
        write_text(output, made, force=force)
    if latency:
        common.console(error=True).print(table)
    if output is None and not as_json:
        common.console().print(table)
    else:
        common.print_result(made, output or "", as_json=as_json)
