"""`optin sweep`: what each recipe loses at each budget, as JSON and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from optin_cli.cli import common
from optin_cli.cli.parameters import command
from optin_cli.errors import UsageError
from optin_cli.options.sweep import SweepOptions

if TYPE_CHECKING:
    from rich.table import Table

    from optin_cli.artifacts.sweep import SweepPoint


@command
def sweep(
    checkpoint: common.CheckpointArgument,
    *,
    calib: Annotated[common.Data, common.CALIBRATION],
    task: Annotated[
        str | None,
        common.task(f"{common.TASK}.", "what the model is for, on your --eval-data"),
    ] = None,
    data: Annotated[common.Data, common.EVAL_DATA],
    output: Annotated[str | None, common.output("NAME-sweep", "Folder to write.")] = None,
    options: SweepOptions,
    threads: common.Threads = None,
    resume: Annotated[
        bool,
        common.flag("--resume", "Go on where an interrupted sweep stopped."),
    ] = False,
    as_json: common.Json = False,
    opening: common.Opening,
    force: common.Force = False,
) -> None:
    """Compare accuracy, compute and time at many budgets, or find the smallest model within a drop."""
    if output == common.STDIO:
        raise UsageError("A sweep writes a folder, which cannot go to stdout.", hint="Pass -o FOLDER, and --json.")
    folder = Path(output or f"{common.stem_of(checkpoint)}-sweep")
    from optin_cli.artifacts.sweep import PARTIAL, RESULT

    with common.resumable(folder / PARTIAL), common.progress("sweeping") as progress:
        stage = common.Stage(progress)
        from optin_cli.cli.tables import sweep_table
        from optin_cli.data.spec import require_data
        from optin_cli.sweeping.keeping import MODEL
        from optin_cli.sweeping.plots import draw_text
        from optin_cli.sweeping.sweep import check_folder, gate_of, judgement, require_chosen
        from optin_cli.sweeping.sweep import sweep as sweep_checkpoint
        from optin_cli.tasks.registry import load_task

        if task is not None:
            require_data(load_task(task), data.path)
        check_folder(folder, resume=resume, force=force)
        common.use_threads(threads)
        opened = opening.load(checkpoint)
        result = sweep_checkpoint(
            opened,
            task,
            calib.spec(),
            folder,
            options,
            data=data.spec(),
            resume=resume,
            force=force,
            progress=stage,
            report=lambda point: common.say(_line(point)),
        )
        took = stage.took(opened.device)
    made: list[str | Table] = [sweep_table(result), draw_text(result)]
    common.finish(f"sweep {checkpoint}", made, took, then=[["report", str(folder), "# all of it on one page"]])
    if as_json:
        common.show(result.dump_with(took), newline=False)
    if options.max_drop is not None:
        if (said := judgement(result, gate_of(options))) is not None:
            common.say(said)
        require_chosen(result)
    if not as_json:
        common.show(f"{folder / MODEL}/" if options.max_drop is not None else str(folder / RESULT))


def _line(point: SweepPoint) -> str:
    from optin_cli.artifacts.evaluation import with_error

    error = "" if point.drop_error is None else f" ± {point.drop_error:.4f}"
    return (
        f"{point.recipe} at {point.asked:g}: {with_error(point.value, point.standard_error)} "
        f"(drop {point.drop:+.4f}{error}), "
        f"{point.prune_seconds:.1f} s (scoring, once: {point.prepare_seconds:.1f} s)"
    )
