"""`optin profile`: what the units of a checkpoint cost in MACs and parameters, or in time measured here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from optin_cli.cli import common
from optin_cli.cli.numbers import whole_number
from optin_cli.cli.parameters import command, given_flags
from optin_cli.errors import UsageError
from optin_cli.options.declare import MODEL, TIMING
from optin_cli.options.latency import LatencyOptions

if TYPE_CHECKING:
    from optin_cli.artifacts.costs import Profile
    from optin_cli.artifacts.latency import LatencyTable


@command
def profile(
    context: typer.Context,
    checkpoint: common.CheckpointArgument,
    *,
    output: Annotated[
        str | None, common.output("no file; NAME.latency.json with --latency", "File to write too; - for stdout.")
    ] = None,
    seq_len: common.SeqLen = None,
    latency: Annotated[
        bool,
        common.flag("--latency", "Measure the time of each group's units on this device, for search.", TIMING),
    ] = False,
    options: LatencyOptions,
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads",
            metavar="N",
            parser=whole_number,
            help="CPU threads, with --latency.",
            show_default="all cores",
            rich_help_panel=MODEL,
        ),
    ] = None,
    every: common.Every = False,
    stream: common.Stream = None,
    as_json: common.Json = False,
    opening: common.Opening,
    force: common.Force = False,
) -> None:
    """Show what costs compute (or time, with --latency), and what can be pruned."""
    given = [*given_flags(context, LatencyOptions), *(["--threads"] if threads is not None else [])]
    if given and not latency:
        raise UsageError(f"{given[0]} says how time is measured.", hint="Pass --latency with it.")
    if latency and stream:
        raise UsageError("Time is not measured of a model that is streamed.", hint="Leave out --latency or --stream.")
    if latency:
        output = common.target_of(output, f"{common.stem_of(checkpoint)}.latency.json", as_json=as_json)
    if output is not None:
        common.require_free(output, force=force, inputs=(checkpoint, *opening.files))
    with common.progress("profiling") as progress:
        stage = common.Stage(progress)
        common.use_threads(threads)
        from optin_cli.cli.tables import latency_table, profile_table
        from optin_cli.files import write_text
        from optin_cli.profiling.latency import profile_latency
        from optin_cli.profiling.profile import profile as measure_costs

        opened = opening.load(checkpoint, stream=False if latency else stream)
        result: Profile | LatencyTable
        if latency:
            result = profile_latency(opened, seq_len=seq_len, options=options, progress=stage)
            table = latency_table(result, every=every)
        else:
            result = measure_costs(opened, seq_len=seq_len)
            table = profile_table(result, every=every)
        took = stage.took(opened.device)
    if output is not None:
        write_text(output, common.contents(result, took, output, as_json=as_json), force=force)
    if output is None and not as_json:
        common.console().print(table)
    common.finish(f"profile {checkpoint}", [table] if latency else [], took, then=_next(checkpoint, output))
    if output is not None or as_json:
        common.print_result(result.dump_with(took), output or "", as_json=as_json)


def _next(checkpoint: str, output: str | None) -> list[list[str]]:
    """How to go on: a table of times is for search, once there are scores."""
    score = ["score", checkpoint, "--calib", "PATH"]
    if output is None or not output.endswith(".latency.json"):
        return [score]
    scores = f"{common.stem_of(checkpoint)}.scores.safetensors"
    return [score, ["search", scores, "--keep-latency", "0.6", "--latency-table", output]]
