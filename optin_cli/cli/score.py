"""`optin score`: the importance of every unit of a checkpoint, from calibration data."""

from pathlib import Path
from typing import Annotated

import typer

from optin_cli.cli import common
from optin_cli.cli.parameters import command
from optin_cli.errors import UsageError
from optin_cli.files import state_of
from optin_cli.options.declare import DATA
from optin_cli.options.scoring import ScoreOptions
from optin_cli.options.shard import Shard


@command
def score(
    context: typer.Context,
    checkpoint: common.CheckpointArgument,
    *,
    data: common.Data,
    output: Annotated[str | None, common.output("NAME.scores.safetensors")] = None,
    options: ScoreOptions,
    seq_len: common.SeqLen = None,
    resume: common.Resume = False,
    shard: Annotated[
        str | None,
        typer.Option(
            "--shard",
            metavar="I/N",
            help="Score part I of N of the samples, for optin merge.",
            show_default="the whole run",
            rich_help_panel=DATA,
        ),
    ] = None,
    dtype: common.Dtype = "auto",
    stream: common.Stream = None,
    threads: common.Threads = None,
    as_json: common.Json = False,
    opening: common.Opening,
    force: common.Force = False,
) -> None:
    """Measure how important every head, neuron, channel or token is, without labels."""
    part = None if shard is None else _part(shard, output, resume=resume)
    named = "scores" if part is None else f"{part.number}-of-{part.count}.part"
    target = output or f"{common.stem_of(checkpoint)}.{named}.safetensors"
    common.require_free(target, force=force, inputs=(checkpoint, *data.files, *opening.files))
    shared = part is not None or context.obj is not None
    if stream and shared:
        raise UsageError("A run that is shared is not streamed.", hint="Leave out --stream, or --shard and torchrun.")
    if stream is None and (shared or options.unstreamed is not None):
        stream = False
    state = None if target == common.STDIO or part is not None else state_of(target)
    with common.resumable(state), common.progress("scoring" if part is None else f"scoring {part}") as progress:
        stage = common.Stage(progress)
        from optin_cli.artifacts.scores import write_scores
        from optin_cli.scoring.score import forget
        from optin_cli.scoring.score import score as score_checkpoint

        common.use_threads(threads)
        opened = opening.load(checkpoint, context, dtype=dtype, stream=stream)
        if part is not None:
            from optin_cli.scoring.parts import score_part, write_part

            scored = score_part(opened, data.spec(), part, options, seq_len=seq_len, progress=stage)
            write_part(Path(target), scored, force=force)
        else:
            result = score_checkpoint(
                opened, data.spec(), options, seq_len=seq_len, state=state, resume=resume, progress=stage
            )
        took = stage.took(opened.device)
    if part is not None:
        then = ["merge", target, "# with the other parts"]
        common.finish(f"score {checkpoint} --shard {part}", [], took, then=[then] if part.count > 1 else [])
        common.print_result(scored.header.dump_with(took), target, as_json=as_json)
        return
    if not opened.processes.leads:
        return
    write_scores(target, result, force=force)
    forget(state)
    common.finish(f"score {checkpoint}", [], took, then=[["search", target, "--keep-flops", "0.5"]])
    common.print_result(result.header.dump_with(took), target, as_json=as_json)


def _part(shard: str, output: str | None, *, resume: bool) -> Shard:
    """The part that --shard asks for (UsageError if it cannot be had)."""
    if output == common.STDIO:
        raise UsageError("A part of scores is a large file and does not go to stdout.", hint="Pass -o FILE.")
    if resume:
        raise UsageError(
            "--resume is for whole runs; a part that was interrupted starts over.",
            hint="Leave out --resume, or divide the run into more parts.",
        )
    return Shard.parse(shard)
