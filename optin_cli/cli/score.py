"""`optin score`: the importance of every unit of a checkpoint, from calibration data."""

from pathlib import Path
from typing import Annotated

from optin_cli.cli import common
from optin_cli.cli.parameters import command
from optin_cli.options.scoring import ScoreOptions


@command
def score(
    checkpoint: common.CheckpointArgument,
    *,
    data: common.Data,
    output: Annotated[str | None, common.output("NAME.scores.safetensors")] = None,
    options: ScoreOptions,
    seq_len: common.SeqLen = None,
    resume: Annotated[
        bool,
        common.flag("--resume", "Go on where an interrupted run stopped."),
    ] = False,
    threads: common.Threads = None,
    as_json: common.Json = False,
    opening: common.Opening,
    force: common.Force = False,
) -> None:
    """Measure how important every head, neuron, channel or token is, without labels."""
    target = output or f"{common.stem_of(checkpoint)}.scores.safetensors"
    common.require_free(target, force=force, inputs=(checkpoint, *data.files, *opening.files))
    state = None if target == common.STDIO else Path(f"{target}.partial")
    with common.resumable(state), common.progress("scoring") as progress:
        stage = common.Stage(progress)
        from optin_cli.artifacts.scores import write_scores
        from optin_cli.scoring.score import forget
        from optin_cli.scoring.score import score as score_checkpoint

        common.use_threads(threads)
        opened = opening.load(checkpoint)
        result = score_checkpoint(
            opened, data.spec(), options, seq_len=seq_len, state=state, resume=resume, progress=stage
        )
        took = stage.took(opened.device)
    write_scores(target, result, force=force)
    forget(state)
    common.finish(f"score {checkpoint}", [], took, then=[["search", target, "--keep-flops", "0.5"]])
    common.print_result(result.header.dump_with(took), target, as_json=as_json)
