"""`optin sweep`: a checkpoint, recipes and budgets in; what each loses at each budget out, as JSON and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from optin_cli.cli import common, completion
from optin_cli.errors import UsageError
from optin_cli.options.evaluation import EvalOptions
from optin_cli.options.images import ImageOptions
from optin_cli.options.scoring import ScoreOptions
from optin_cli.options.sweep import SweepOptions

if TYPE_CHECKING:
    from rich.table import Table

    from optin_cli.artifacts.evaluation import Latency
    from optin_cli.artifacts.sweep import Sweep, SweepPoint


SCORING, EVALUATION = ScoreOptions(), EvalOptions()


EVALUATIONS = 6


def sweep(
    checkpoint: common.CheckpointArgument,
    calib: Annotated[
        str,
        typer.Option("--calib", metavar="TASK|PATH", help="Texts or images to score and refit on.", show_default=False),
    ],
    task: Annotated[
        str,
        typer.Option(
            "--task",
            metavar="TASK",
            help="Task whose metric is measured.",
            show_default=False,
            autocompletion=completion.tasks,
        ),
    ],
    keep_flops: Annotated[
        str | None, typer.Option(metavar="SHARE[,…]", help="Shares of the model's MACs to keep: 0.7,0.6,0.5,0.4.")
    ] = None,
    max_drop: Annotated[
        float | None, typer.Option(help="Instead: write the smallest model whose metric is lower by no more.")
    ] = None,
    evaluations: Annotated[int, typer.Option(help="Most models tried for --max-drop.")] = EVALUATIONS,
    recipe: Annotated[
        str,
        typer.Option(
            metavar="NAME[,…]",
            help="Ways of pruning: optin, no-refit, magnitude, fisher, …",
            autocompletion=completion.recipes,
        ),
    ] = "optin",
    output: common.Output = None,
    data: common.Data = None,
    calib_data: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Local copy of the calibration task's data.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Calibration samples.")] = SCORING.samples,
    eval_samples: Annotated[int | None, typer.Option(help="Evaluate on this many samples. (default: all)")] = None,
    refit_ridge: Annotated[
        float | None, typer.Option(help="Ridge of the refit, relative. (default: by held-out error)")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Samples at once.")] = SCORING.batch_size,
    max_length: Annotated[int | None, typer.Option(help="Longest sample, in tokens. (default: 128)")] = None,
    seq_len: common.SeqLen = None,
    latency_batch: Annotated[
        int, typer.Option(help="Batch size that latency is measured at.")
    ] = EVALUATION.latency_batch,
    latency_length: Annotated[
        int, typer.Option(help="Sequence length that latency is measured at.")
    ] = EVALUATION.latency_length,
    latency_runs: Annotated[
        int, typer.Option(help="Timed runs, of which the median counts; 0 skips.")
    ] = EVALUATION.latency_runs,
    threads: Annotated[int | None, typer.Option(help="CPU threads. (default: all cores)")] = None,
    text_columns: common.TextColumns = None,
    label_column: common.LabelColumn = None,
    max_unreadable: common.MaxUnreadable = common.MAX_UNREADABLE,
    seed: common.Seed = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted sweep stopped.")] = False,
    as_json: common.Json = False,
    arch: common.Arch = None,
    arch_args: common.ArchArgs = None,
    architecture: common.ArchitectureFile = None,
    device: common.Device = None,
    force: common.Force = False,
) -> None:
    """Accuracy against FLOPs and latency at many budgets, or the smallest model within a drop."""
    if output == common.STDIO:
        raise UsageError("A sweep writes a folder, which cannot go to stdout.", hint="Pass -o FOLDER, and --json.")
    shares = None if keep_flops is None else tuple(common.shares_of(keep_flops, "--keep-flops"))
    names = tuple(name.strip() for name in recipe.split(","))
    scoring = ScoreOptions(samples=samples, batch_size=batch_size, max_length=max_length, seed=seed)
    evaluation = EvalOptions(
        batch_size=batch_size,
        max_length=max_length,
        seq_len=seq_len,
        latency_batch=latency_batch,
        latency_length=latency_length,
        latency_runs=latency_runs,
        samples=eval_samples,
        seed=seed,
    )
    options = SweepOptions(names, shares, max_drop, evaluations, refit_ridge, scoring, evaluation)
    folder = Path(output or f"{common.stem_of(checkpoint)}-sweep")
    from optin_cli.tasks.registry import load_task

    load_task(task)
    import optin_cli as api
    from optin_cli.data.spec import DataSpec
    from optin_cli.sweeping.plots import PICTURES, draw_text
    from optin_cli.sweeping.sweep import MODEL, PARTIAL, RESULT, check_folder, find_recipe, require_chosen

    for name in names:
        find_recipe(name)
    check_folder(folder, resume=resume, force=force)
    common.use_threads(threads)
    opened = common.open_checkpoint(checkpoint, arch, arch_args, architecture, device)
    columns, images = (common.columns_of(text_columns), label_column), ImageOptions(max_unreadable=max_unreadable)
    with common.resumable(folder / PARTIAL), common.progress("sweeping") as progress:
        result = api.sweep(
            opened,
            task,
            DataSpec(calib, calib_data, *columns, images=images),
            folder,
            options,
            data=DataSpec(None, data, *columns, images=images),
            resume=resume,
            force=force,
            progress=progress,
            report=lambda point: common.say(_line(point)),
        )
    common.stderr().print(sweep_table(result))
    common.say(draw_text(result))
    if not (folder / PICTURES[0]).exists():
        common.say("No pictures, because matplotlib is not installed: pip install 'optin-cli[plot]'.")
    if as_json:
        typer.echo(result.dump(), nl=False)
    if max_drop is not None:
        require_chosen(result)
    common.say(f"All of it on one page: optin report {folder}")
    if not as_json:
        typer.echo(f"{folder / MODEL}/" if max_drop is not None else folder / RESULT)


def _line(point: SweepPoint) -> str:
    spread = "" if point.standard_error is None else f" ± {point.standard_error:.4f}"
    return (
        f"{point.recipe} at {point.asked:g}: {point.value:.4f}{spread} (drop {point.drop:+.4f}), "
        f"pruned in {point.prune_seconds:.1f} s after {point.prepare_seconds:.1f} s for all budgets"
    )


def sweep_table(result: Sweep) -> Table:
    """The sweep as a table for people, the original first."""
    from rich.table import Table

    latency = result.baseline.latency
    speed = "no latency" if latency is None else f"latency at batch {latency.batch_size}, {latency.shape}"
    table = Table(
        title=f"{result.inputs['checkpoint'].name} on {result.task} ({result.split}, {result.samples:,} samples)",
        caption=f"MACs at {result.workload.shape}, {speed}; shares are of the original; "
        "seconds are of pruning, scoring for all budgets in brackets",
    )
    table.add_column("recipe")
    for heading in ("asked", "MACs", "params", result.metric, "drop", "agreement", "ms", "latency", "seconds"):
        table.add_column(heading, justify="right")
    base = result.baseline
    table.add_row("original", "", "1", "1", _spread(base.value, base.standard_error), "", "", _ms(base.latency), "", "")
    for number, point in enumerate(result.points):
        table.add_row(
            f"{point.recipe} (chosen)" if number == result.chosen else point.recipe,
            f"{point.asked:g}",
            f"{point.macs_ratio:.4f}",
            f"{point.parameters_ratio:.4f}",
            _spread(point.value, point.standard_error),
            f"{point.drop:+.4f}",
            "" if point.agreement is None else f"{point.agreement:.4f}",
            _ms(point.latency),
            "" if point.latency_ratio is None else f"{point.latency_ratio:.3f}",
            f"{point.prune_seconds:.1f} ({point.prepare_seconds:.1f})",
        )
    return table


def _spread(value: float, error: float | None) -> str:
    return f"{value:.4f}" if error is None else f"{value:.4f} ± {error:.4f}"


def _ms(latency: Latency | None) -> str:
    return "" if latency is None else f"{latency.median_ms:.1f}"
