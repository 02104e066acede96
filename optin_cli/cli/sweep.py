"""`optin sweep`: what each recipe loses at each budget, as JSON and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from optin_cli.cli import common, completion
from optin_cli.cli.parameters import command
from optin_cli.errors import UsageError
from optin_cli.options.declare import Option, offer
from optin_cli.options.sweep import SweepOptions

if TYPE_CHECKING:
    from optin_cli.artifacts.sweep import SweepPoint

CALIBRATION = offer(
    "columns",
    "label_column",
    "images",
    source=Option("--calib", "Texts or images to score and refit on.", metavar="TASK|PATH", required=True),
    path=Option("--calib-data", "Local copy of the calibration task's data.", metavar="PATH"),
)


@command
def sweep(
    checkpoint: common.CheckpointArgument,
    *,
    calib: Annotated[common.Data, CALIBRATION],
    task: Annotated[
        str | None,
        typer.Option(
            "--task",
            metavar="TASK",
            help="Task whose metric is measured. (default: what the model is for, on your --data)",
            autocompletion=completion.tasks,
        ),
    ] = None,
    data: Annotated[common.Data, common.TASK_DATA],
    output: common.Output = None,
    options: SweepOptions,
    threads: common.Threads = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted sweep stopped.")] = False,
    as_json: common.Json = False,
    opening: common.Opening,
    force: common.Force = False,
) -> None:
    """Accuracy against FLOPs and latency at many budgets, or the smallest model within a drop."""
    if output == common.STDIO:
        raise UsageError("A sweep writes a folder, which cannot go to stdout.", hint="Pass -o FOLDER, and --json.")
    folder = Path(output or f"{common.stem_of(checkpoint)}-sweep")
    from optin_cli.artifacts.sweep import RESULT
    from optin_cli.cli.tables import sweep_table
    from optin_cli.data.spec import require_data
    from optin_cli.sweeping.keeping import MODEL
    from optin_cli.sweeping.plots import draw_text
    from optin_cli.sweeping.sweep import PARTIAL, check_folder, gate_of, judgement, require_chosen
    from optin_cli.sweeping.sweep import sweep as sweep_checkpoint
    from optin_cli.tasks.registry import load_task

    if task is not None:
        require_data(load_task(task), data.path)
    check_folder(folder, resume=resume, force=force)
    common.use_threads(threads)
    opened = opening.load(checkpoint)
    with common.resumable(folder / PARTIAL), common.progress("sweeping") as progress:
        result = sweep_checkpoint(
            opened,
            task,
            calib.spec(),
            folder,
            options,
            data=data.spec(),
            resume=resume,
            force=force,
            progress=progress,
            report=lambda point: common.say(_line(point)),
        )
    common.console(error=True).print(sweep_table(result))
    common.say(draw_text(result))
    if as_json:
        common.show(result.dump(), newline=False)
    if options.max_drop is not None:
        if (said := judgement(result, gate_of(options))) is not None:
            common.say(said)
        require_chosen(result)
    common.say(f"All of it on one page: optin report {folder}")
    if not as_json:
        common.show(f"{folder / MODEL}/" if options.max_drop is not None else str(folder / RESULT))


def _line(point: SweepPoint) -> str:
    from optin_cli.artifacts.evaluation import with_error

    error = "" if point.drop_error is None else f" ± {point.drop_error:.4f}"
    return (
        f"{point.recipe} at {point.asked:g}: {with_error(point.value, point.standard_error)} "
        f"(drop {point.drop:+.4f}{error}), "
        f"pruned in {point.prune_seconds:.1f} s after {point.prepare_seconds:.1f} s for all budgets"
    )
