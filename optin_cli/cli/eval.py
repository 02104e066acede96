"""`optin eval`: a checkpoint and labelled (or other) data in; metric, agreement, size and speed out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from optin_cli.cli import common, completion
from optin_cli.errors import UsageError
from optin_cli.options.evaluation import AnswerOptions, EvalOptions
from optin_cli.options.images import ImageOptions

if TYPE_CHECKING:
    from rich.table import Table

    from optin_cli.artifacts.evaluation import Evaluation


DEFAULTS = EvalOptions()


def evaluate(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CKPT",
            help="Checkpoint, as for the other commands, or a file that optin export wrote (.onnx, .pt2, .xml).",
            show_default=False,
        ),
    ],
    task: Annotated[
        str | None,
        typer.Option(
            "--task",
            metavar="TASK",
            help="Task whose metric is measured (sst2, imagenet-1k, imagefolder, …).",
            autocompletion=completion.tasks,
        ),
    ] = None,
    data: common.Data = None,
    against: Annotated[
        str | None,
        typer.Option("--against", metavar="CKPT", help="Checkpoint or exported file to compare with, in the same run."),
    ] = None,
    max_drop: Annotated[
        float | None, typer.Option(help="Exit with status 3 if the metric is lower than --against's by more.")
    ] = None,
    output: common.Output = None,
    card: Annotated[
        bool, typer.Option("--card", help="Also write what was measured into the model card of a pruned folder.")
    ] = False,
    samples: Annotated[int | None, typer.Option(help="Evaluate on this many samples. (default: all)")] = None,
    batch_size: Annotated[int, typer.Option(help="Samples at once.")] = DEFAULTS.batch_size,
    max_length: Annotated[
        int | None, typer.Option(help="Longest sample, in tokens. (default: 128; a window of questions: 384)")
    ] = None,
    doc_stride: Annotated[
        int, typer.Option(help="Tokens that two windows of a question's long context share.")
    ] = DEFAULTS.answers.doc_stride,
    no_answer_threshold: Annotated[
        float, typer.Option(help="How far the score of no answer must exceed the best answer's (squad_v2).")
    ] = DEFAULTS.answers.no_answer_threshold,
    seq_len: common.SeqLen = None,
    latency_batch: Annotated[
        int, typer.Option(help="Batch size that latency is measured at.")
    ] = DEFAULTS.latency_batch,
    latency_length: Annotated[
        int, typer.Option(help="Sequence length that latency is measured at.")
    ] = DEFAULTS.latency_length,
    latency_runs: Annotated[
        int, typer.Option(help="Timed runs, of which the median counts; 0 skips.")
    ] = DEFAULTS.latency_runs,
    threads: Annotated[int | None, typer.Option(help="CPU threads. (default: all cores)")] = None,
    text_columns: common.TextColumns = None,
    label_column: common.LabelColumn = None,
    max_unreadable: common.MaxUnreadable = common.MAX_UNREADABLE,
    seed: common.Seed = 0,
    as_json: common.Json = False,
    arch: common.Arch = None,
    arch_args: common.ArchArgs = None,
    architecture: common.ArchitectureFile = None,
    device: common.Device = None,
    force: common.Force = False,
) -> int:
    """Task metric, agreement, FLOPs, size, latency."""
    to_stdout = output == common.STDIO or (as_json and output is None)
    target = common.STDIO if to_stdout else output or f"{common.stem_of(checkpoint)}.eval.json"
    common.require_free(target, force=force)
    if card:
        from optin_cli.pruning.model_card import require_card

        require_card(Path(checkpoint))
    if max_drop is not None and (against is None or task is None):
        raise UsageError(
            "--max-drop compares the task's metric with another checkpoint's.",
            hint="Pass --against CHECKPOINT and --task NAME.",
        )
    if task is not None:
        from optin_cli.tasks.registry import load_task

        load_task(task)
    import optin_cli as api
    from optin_cli.checkpoints.libraries.registry import parse_arguments
    from optin_cli.data.spec import DataSpec
    from optin_cli.errors import Exit
    from optin_cli.evaluation.evaluate import require_drop
    from optin_cli.exporting.load import device_for, load_evaluated
    from optin_cli.files import write_text

    common.use_threads(threads)
    device = device_for(device, checkpoint, against)
    arguments = parse_arguments(arch_args)
    opened = load_evaluated(checkpoint, device=device, arch=arch, arch_args=arguments, architecture=architecture)
    other = None if against is None else load_evaluated(against, device=device, architecture=architecture)
    options = EvalOptions(
        batch_size=batch_size,
        max_length=max_length,
        seq_len=seq_len,
        latency_batch=latency_batch,
        latency_length=latency_length,
        latency_runs=latency_runs,
        answers=AnswerOptions(doc_stride=doc_stride, no_answer_threshold=no_answer_threshold),
        samples=samples,
        seed=seed,
    )
    with common.progress("evaluating") as progress:
        result = api.evaluate(
            opened,
            task,
            DataSpec(
                path=data,
                columns=common.columns_of(text_columns),
                label_column=label_column,
                images=ImageOptions(max_unreadable=max_unreadable),
            ),
            against=other,
            options=options,
            progress=progress,
        )
    problem = None if max_drop is None else require_drop(result, max_drop)
    write_text(target, result.dump(), force=force)
    if card:
        from optin_cli.pruning.model_card import write_measured

        write_measured(Path(checkpoint), result)
    common.stderr().print(evaluation_table(result))
    if target != common.STDIO:
        typer.echo(result.dump() if as_json else target, nl=not as_json)
    if problem is not None:
        common.say(f"gate not met: {problem}")
        return Exit.GATE
    return Exit.DONE


def evaluation_table(result: Evaluation) -> Table:
    """The evaluation as a table for people, with a column for the other model."""
    from rich.table import Table

    other = result.against
    data = f"{result.inputs['data'].name}, {result.samples:,} samples" if "data" in result.inputs else "no data"
    table = Table(title=f"{result.inputs['checkpoint'].name} ({data})")
    table.add_column("")
    table.add_column(result.inputs["checkpoint"].name, justify="right")
    if other is not None:
        table.add_column(other.name, justify="right")
        table.add_column("ratio", justify="right")
    rows: list[tuple[str, str, str, str]] = []
    for name, value in result.metrics.items():
        spread = ""
        if result.metric is not None and name == result.metric.name and result.standard_error is not None:
            spread = f" ± {result.standard_error:.4f}"
        theirs = f"{other.metric.value:.4f}" if other and other.metric and other.metric.name == name else ""
        rows.append((name, f"{value:.4f}{spread}", theirs, ""))
    if other is not None and other.agreement is not None:
        rows.append(("agreement", f"{other.agreement:.4f}", "", ""))
    if other is not None and other.kl is not None:
        rows.append(("KL (nats)", f"{other.kl:.4g}", "", ""))
    totals = result.totals
    for name, mine, ratio in (
        (f"MACs, {result.workload.shape}", totals.macs, other and other.macs_ratio),
        ("parameters", totals.parameters, other and other.parameters_ratio),
        ("bytes", totals.bytes, other and other.bytes_ratio),
    ):
        rows.append((name, f"{mine:,}", f"{mine / ratio:,.0f}" if ratio else "", f"{ratio:.3f}" if ratio else ""))
    if (latency := result.latency) is not None:
        ratio = other.latency_ratio if other is not None else None
        rows.append(
            (
                f"ms, batch {latency.batch_size}, {latency.shape}",
                f"{latency.median_ms:.1f}",
                f"{latency.median_ms / ratio:.1f}" if ratio else "",
                f"{ratio:.3f}" if ratio else "",
            )
        )
        rows.append(("samples/s", f"{latency.samples_per_second:,.0f}", "", ""))
        runtimes = (latency.runtime, "" if other is None else other.runtime)
        if any(name not in ("", "torch") for name in runtimes):
            rows.append(("runtime", *runtimes, ""))
    for row in rows:
        table.add_row(*row[: len(table.columns)])
    return table
