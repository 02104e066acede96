"""`optin score`: the importance of every unit of a checkpoint, from calibration data."""

from pathlib import Path
from typing import Annotated

import typer

from optin_cli.cli import common
from optin_cli.cli.parameters import command
from optin_cli.options.scoring import ScoreOptions


@command
def score(
    checkpoint: common.CheckpointArgument,
    *,
    data: common.Data,
    output: common.Output = None,
    options: ScoreOptions,
    seq_len: common.SeqLen = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted run stopped.")] = False,
    stream: common.Stream = None,
    threads: common.Threads = None,
    as_json: common.Json = False,
    opening: common.Opening,
    force: common.Force = False,
) -> None:
    """Importance of every head, neuron, channel or token, without labels."""
    target = output or f"{common.stem_of(checkpoint)}.scores.safetensors"
    common.require_free(target, force=force, inputs=(checkpoint, *data.files, *opening.files))
    from optin_cli.artifacts.scores import write_scores
    from optin_cli.scoring.score import forget
    from optin_cli.scoring.score import score as score_checkpoint

    state = None if target == common.STDIO else Path(f"{target}.partial")
    common.use_threads(threads)
    if stream is None and options.unstreamed is not None:
        stream = False
    opened = opening.load(checkpoint, stream=stream)
    with common.resumable(state), common.progress("scoring") as progress:
        result = score_checkpoint(
            opened, data.spec(), options, seq_len=seq_len, state=state, resume=resume, progress=progress
        )
    write_scores(target, result, force=force)
    forget(state)
    common.print_result(result.header.dump(), target, as_json=as_json)
