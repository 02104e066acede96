"""`optin shrink`: score, search, prune and eval in one go, with the artifacts beside the result."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from optin_cli.cli import common
from optin_cli.cli.gates import judge
from optin_cli.cli.parameters import command
from optin_cli.cli.prune import summary
from optin_cli.errors import UsageError
from optin_cli.options.shrink import ShrinkOptions

if TYPE_CHECKING:
    from rich.table import Table

    from optin_cli.sweeping.shrink import Shrunk


@command
def shrink(
    checkpoint: common.CheckpointArgument,
    *,
    calib: Annotated[common.Data, common.CALIBRATION],
    task: Annotated[
        str | None,
        common.task(f"{common.TASK}.", "what the model is for, on your --eval-data"),
    ] = None,
    data: Annotated[common.Data, common.EVAL_DATA],
    output: Annotated[
        str | None, common.output("NAME-small", "Folder to write; the artifacts are written beside it.")
    ] = None,
    options: ShrinkOptions,
    threads: common.Threads = None,
    as_json: common.Json = False,
    opening: common.Opening,
    force: common.Force = False,
) -> int:
    """Make a model smaller in one go: score, search, prune and eval."""
    if output == common.STDIO:
        raise UsageError("A checkpoint is a folder and cannot go to stdout.", hint="Pass -o FOLDER, and --json.")
    with common.progress("shrinking") as progress:
        stage = common.Stage(progress)
        from optin_cli.cli.tables import evaluation_table
        from optin_cli.sweeping.shrink import Places, check_places
        from optin_cli.sweeping.shrink import shrink as shrink_checkpoint

        folder = Path(output or f"{common.stem_of(checkpoint)}-small")
        inputs = (checkpoint, *calib.files, *data.files, *opening.files)
        check_places(Places(folder), options, force=force, inputs=inputs)
        common.use_threads(threads)
        opened = opening.load(checkpoint)
        result = shrink_checkpoint(
            opened, calib.spec(), folder, options, task=task, data=data.spec(), force=force, progress=stage
        )
        took = stage.took(opened.device)
    made: list[str | Table] = [*summary(result.manifest), evaluation_table(result.evaluation), *_steps(result)]
    then = [
        ["report", f"{folder}/", "# a page for people"],
        ["export", f"{folder}/", "--to", "onnx", "# to run it elsewhere"],
    ]
    common.finish(f"shrink {checkpoint}", made, took, then=then)
    common.print_result(result.evaluation.dump_with(took), f"{folder}/", as_json=as_json)
    return judge(result.evaluation, options.max_drop, options.confidence)


def _steps(result: Shrunk) -> list[str]:
    """How long the stages took, and where their artifacts are."""
    places, seconds = result.places, result.seconds
    made = [path for path in (places.scores, places.sweep, places.mask, places.evaluation) if path.exists()]
    took = " + ".join(f"{name} {time:.1f} s" for name, time in seconds.items())
    return [f"{took} = {sum(seconds.values()):.0f} s", f"beside it: {', '.join(path.name for path in made)}"]
