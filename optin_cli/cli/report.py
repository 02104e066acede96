"""`optin report`: a pruned or sweep folder, or artifacts, in; one self-contained HTML page out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from optin_cli.cli import common

Files = list[Path] | None


def report(
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="DIR", help="What prune or sweep wrote, or a folder that holds artifacts.", show_default=False
        ),
    ] = None,
    output: common.Output = None,
    mask: Annotated[Path | None, typer.Option("--mask", metavar="FILE", help="Mask that the model was cut by.")] = None,
    scores: Annotated[Path | None, typer.Option("--scores", metavar="FILE", help="Scores of the mask.")] = None,
    profile: Annotated[
        Path | None, typer.Option("--profile", metavar="FILE", help="Profile of the original, in place of scores.")
    ] = None,
    evaluation: Annotated[
        Files, typer.Option("--eval", metavar="FILE", help="Evaluation of the cut model; repeatable.")
    ] = None,
    sweep: Annotated[Files, typer.Option("--sweep", metavar="FILE", help="Sweep of the original; repeatable.")] = None,
    as_json: common.Json = False,
    force: common.Force = False,
) -> None:
    """One HTML page of a pruned model: numbers, pictures, proof and commands."""
    to_stdout = output == common.STDIO
    first = next((p for p in (folder, mask, scores, profile, *(evaluation or ()), *(sweep or ())) if p), None)
    target = output or f"{common.stem_of(str(first)) if first else 'optin'}.report.html"
    common.require_free(target, force=force)
    from dataclasses import asdict

    from pydantic_core import to_jsonable_python

    from optin_cli.artifacts.base import to_json
    from optin_cli.reporting.report import report as write_report

    single = {"mask": mask, "scores": scores, "profile": profile}
    files = {kind: [path] for kind, path in single.items() if path is not None}
    files |= {"eval": evaluation or [], "sweep": sweep or []}
    made = write_report(folder, target, files=files, force=force, progress=common.Notes())
    if as_json and not to_stdout:
        typer.echo(to_json(to_jsonable_python(asdict(made), by_alias=True)))
    elif not to_stdout:
        typer.echo(target)
