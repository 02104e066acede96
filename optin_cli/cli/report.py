"""`optin report`: one self-contained HTML page of a pruned model or a sweep."""

from pathlib import Path
from typing import Annotated, Any

import typer

from optin_cli.cli import common
from optin_cli.options.declare import DATA

Files = list[Path] | None


def report(
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="DIR", help="What prune or sweep wrote, or a folder that holds artifacts.", show_default=False
        ),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option("--mask", metavar="FILE", help="Mask that the model was cut by.", rich_help_panel=DATA),
    ] = None,
    scores: Annotated[
        Path | None, typer.Option("--scores", metavar="FILE", help="Scores of the mask.", rich_help_panel=DATA)
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(
            "--profile", metavar="FILE", help="Profile of the original, in place of scores.", rich_help_panel=DATA
        ),
    ] = None,
    evaluation: Annotated[
        Files,
        typer.Option("--eval", metavar="FILE", help="Evaluation of the cut model; repeatable.", rich_help_panel=DATA),
    ] = None,
    sweep: Annotated[
        Files, typer.Option("--sweep", metavar="FILE", help="Sweep of the original; repeatable.", rich_help_panel=DATA)
    ] = None,
    output: Annotated[str | None, common.output("NAME.report.html")] = None,
    as_json: common.Json = False,
    force: common.Force = False,
) -> None:
    """Write one HTML page about a pruned model or a sweep: numbers, pictures, proof, commands."""
    single = {"mask": mask, "scores": scores, "profile": profile}
    files = {kind: [path] for kind, path in single.items() if path is not None}
    files |= {"eval": evaluation or [], "sweep": sweep or []}
    first = next((path for path in (folder, *(path for paths in files.values() for path in paths)) if path), None)
    target = output or f"{common.stem_of(str(first)) if first else 'optin'}.report.html"
    named = (path for paths in files.values() for path in paths)
    common.require_free(target, force=force, inputs=(folder, *named))
    from dataclasses import asdict

    from pydantic import TypeAdapter

    from optin_cli.artifacts.base import to_json
    from optin_cli.reporting.report import report as write_report

    made = write_report(folder, target, files=files, force=force, progress=common.Notes())
    facts = f"{to_json(TypeAdapter(Any).dump_python(asdict(made), mode='json', by_alias=True))}\n" if as_json else ""
    common.print_result(facts, target, as_json=as_json)
