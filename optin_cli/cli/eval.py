"""`optin eval`: task metric, agreement with another checkpoint, size and speed."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from optin_cli.cli import common, garbage
from optin_cli.cli.gates import judge
from optin_cli.cli.parameters import command
from optin_cli.errors import Exit, UsageError
from optin_cli.options.declare import DATA
from optin_cli.options.evaluation import EvalOptions
from optin_cli.options.gate import GateOptions
from optin_cli.tasks.harness import is_harness_task, require_harness
from optin_cli.tasks.registry import load_task


@command
def evaluate(
    context: typer.Context,
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CKPT",
            help="Checkpoint, as for the other commands, or a file that optin export wrote (.onnx, .pt2, .xml, .gguf).",
            show_default=False,
        ),
    ],
    *,
    task: Annotated[
        str | None,
        common.task(
            f"{common.TASK}, or lm-eval:NAME for one of the lm-evaluation-harness.",
            "what the model is for, on your --data",
        ),
    ] = None,
    data: Annotated[common.Data, common.TASK_DATA],
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            metavar="CKPT",
            help="Checkpoint or exported file to compare with, in the same run.",
            rich_help_panel=DATA,
        ),
    ] = None,
    draft_for: Annotated[
        str | None,
        typer.Option(
            "--draft-for",
            metavar="CKPT",
            help="Measure CKPT as the draft of this model in speculative decoding, on prompts from the data.",
            rich_help_panel=DATA,
        ),
    ] = None,
    gate: GateOptions,
    output: Annotated[str | None, common.output("NAME.eval.json")] = None,
    card: Annotated[
        bool,
        common.flag("--card", "Also write what was measured into the model card of a pruned folder."),
    ] = False,
    options: EvalOptions,
    dtype: common.Dtype = "auto",
    threads: common.Threads = None,
    as_json: common.Json = False,
    opening: common.Opening,
    force: common.Force = False,
) -> int:
    """Measure a model: task metric, same answers as another, compute, size, time."""
    if gate.max_drop is not None and (against is None or (task is None and data.path is None)):
        raise UsageError(
            "--max-drop compares the task's metric with another checkpoint's.",
            hint="Pass --against CHECKPOINT and --task NAME, or labelled samples with --data.",
        )
    if draft_for is not None and (is_harness_task(task) or (task is None and data.path is None)):
        raise UsageError("--draft-for continues texts, and none are named.", hint="Pass --data with running text.")
    _require_task(task, data.path)
    target = common.target_of(output, f"{common.stem_of(checkpoint)}.eval.json", as_json=as_json)
    inputs = (checkpoint, against, *data.files, *opening.files)
    common.require_free(target, force=force, inputs=inputs)
    if options.pictures is not None:
        common.require_free(options.pictures, force=force, inputs=inputs, folder=True, into=True)
    from optin_cli.pruning.model_card import require_card, write_measured

    if card:
        require_card(Path(checkpoint))
    with common.progress("evaluating") as progress:
        stage = common.Stage(progress)
        common.use_threads(threads)
        from optin_cli.cli.tables import evaluation_table
        from optin_cli.evaluation.drafts import evaluate_draft, require_draft, with_draft
        from optin_cli.evaluation.evaluate import evaluate as evaluate_checkpoint
        from optin_cli.evaluation.evaluate import require_drop
        from optin_cli.exporting.load import device_for, load_evaluated
        from optin_cli.files import is_stream, write_text

        device = common.own_device(device_for(opening.device, checkpoint, against), context)
        how: dict[str, Any] = {"device": device, "architecture": opening.architecture, "image_size": opening.size}
        how |= {"as_class": opening.as_class, "dtype": dtype}
        opened = load_evaluated(checkpoint, arch=opening.arch, arch_args=opening.arguments(), **how)
        other = None if against is None else load_evaluated(against, **how)
        original = other if draft_for == against else None if draft_for is None else load_evaluated(draft_for, **how)
        garbage.search_usually()
        for each in filter(None, (opened, other, None if original is other else original)):
            for note in each.notes:
                common.say(note)
        if original is not None:
            require_draft(opened, original)
        opened = common.shared_by(opened, context)
        result = evaluate_checkpoint(opened, task, data.spec(), against=other, options=options, progress=stage)
        if not opened.processes.leads:
            return Exit.DONE
        if original is not None:
            spec = replace(data.spec(), known=None if task is None else load_task(task))
            drafted = evaluate_draft(opened, original, spec, options=options, progress=stage)
            result = with_draft(result, original, drafted)
        took = stage.took(opened.device)
    if gate.max_drop is not None:
        require_drop(result, gate.max_drop, gate.confidence)
    beside = card and target != common.STDIO and not is_stream(Path(target))
    if not beside:
        write_text(target, common.contents(result, took, target, as_json=as_json), force=force)
    if card:
        write_measured(Path(checkpoint), result, Path(target) if beside else None, force=force)
    common.finish(f"eval {checkpoint}", [evaluation_table(result)], took, then=_next(checkpoint, target))
    common.print_result(result.dump_with(took), target, as_json=as_json)
    return judge(result, gate.max_drop, gate.confidence)


def _next(checkpoint: str, target: str) -> list[list[str]]:
    """What to do with an evaluated model: a report or a file for a runtime of a pruned folder; else cut it."""
    from optin_cli.checkpoints.folders import MANIFEST

    if (Path(checkpoint) / MANIFEST).is_file():
        named = [] if target == common.STDIO else ["--eval", target]
        return [["report", checkpoint, *named], ["export", checkpoint, "--to", "onnx"]]
    if Path(checkpoint).is_dir():
        return [["shrink", checkpoint, "--calib", "PATH", "--keep-flops", "0.5"]]
    return []


def _require_task(task: str | None, path: Path | None) -> None:
    """Refuse a task that is unknown, or whose data cannot be had."""
    if is_harness_task(task):
        require_harness(task, path)
    elif task is not None:
        from optin_cli.data.spec import require_data

        require_data(load_task(task), path)
