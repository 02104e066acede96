"""`optin merge`: the scores of a run from the parts that `optin score --shard` wrote."""

from typing import Annotated

import typer

from optin_cli.cli import common


def merge(
    parts: Annotated[
        list[str],
        typer.Argument(metavar="PART", help="All parts of a run, in any order.", show_default=False),
    ],
    threads: common.Threads = None,
    output: Annotated[str | None, common.output("NAME.scores.safetensors")] = None,
    as_json: common.Json = False,
    force: common.Force = False,
) -> None:
    """Make scores from the parts of a run that score --shard divided."""
    if output is not None:
        common.require_free(output, force=force, inputs=parts)
    from pathlib import Path

    from optin_cli.artifacts.part import read_part_header
    from optin_cli.artifacts.scores import write_scores

    target = output or f"{read_part_header(Path(parts[0])).inputs['checkpoint'].name}.scores.safetensors"
    common.require_free(target, force=force, inputs=parts)
    from optin_cli.scoring.parts import merge_parts

    common.use_threads(threads)
    with common.progress("merging") as progress:
        result = merge_parts(parts, progress=progress)
    write_scores(target, result, force=force)
    common.finish("merge", [], then=[["search", target, "--keep-flops", "0.5"]])
    common.print_result(result.header.dump(), target, as_json=as_json)
