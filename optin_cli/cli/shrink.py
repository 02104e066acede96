"""`optin shrink`: score, search, prune and eval in one go, with the artifacts beside the result."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from optin_cli.cli import common, completion
from optin_cli.cli.gates import judge
from optin_cli.cli.parameters import command
from optin_cli.cli.prune import summary
from optin_cli.cli.sweep import CALIBRATION
from optin_cli.errors import UsageError
from optin_cli.options.shrink import ShrinkOptions

if TYPE_CHECKING:
    from optin_cli.sweeping.shrink import Shrunk


@command
def shrink(
    checkpoint: common.CheckpointArgument,
    *,
    calib: Annotated[common.Data, CALIBRATION],
    task: Annotated[
        str | None,
        typer.Option("--task", metavar="TASK", help="Task whose metric is measured.", autocompletion=completion.tasks),
    ] = None,
    data: Annotated[common.Data, common.TASK_DATA],
    output: common.Output = None,
    options: ShrinkOptions,
    threads: common.Threads = None,
    as_json: common.Json = False,
    opening: common.Opening,
    force: common.Force = False,
) -> int:
    """Score, search, prune and eval in one go: a smaller checkpoint, and what it costs."""
    if output == common.STDIO:
        raise UsageError("A checkpoint is a folder and cannot go to stdout.", hint="Pass -o FOLDER, and --json.")
    from optin_cli.cli.tables import evaluation_table
    from optin_cli.sweeping.shrink import Places, check_places
    from optin_cli.sweeping.shrink import shrink as shrink_checkpoint

    folder = Path(output or f"{common.stem_of(checkpoint)}-small")
    inputs = (checkpoint, *calib.files, *data.files, *opening.files)
    check_places(Places(folder), options, force=force, inputs=inputs)
    common.use_threads(threads)
    opened = opening.load(checkpoint)
    with common.progress("shrinking") as progress:
        result = shrink_checkpoint(
            opened, calib.spec(), folder, options, task=task, data=data.spec(), force=force, progress=progress
        )
    for line in summary(result.manifest):
        common.say(line)
    common.console(error=True).print(evaluation_table(result.evaluation))
    for line in _steps(result):
        common.say(line)
    common.print_result(result.evaluation.dump(), f"{folder}/", as_json=as_json)
    return judge(result.evaluation, options.max_drop, options.confidence)


def _steps(result: Shrunk) -> list[str]:
    """How long the stages took, where their artifacts are, and what to do next."""
    places, seconds = result.places, result.seconds
    made = [path for path in (places.scores, places.sweep, places.mask, places.evaluation) if path.exists()]
    took = " + ".join(f"{name} {time:.1f} s" for name, time in seconds.items())
    return [
        f"{took} = {sum(seconds.values()):.0f} s",
        f"beside it: {', '.join(path.name for path in made)}",
        f"next: optin report {places.folder}/   a page for people",
        f"      optin export {places.folder}/ --to onnx   to run it elsewhere",
    ]
