"""`optin score`: a checkpoint and calibration data in; a scores file out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from optin_cli.cli import common, completion
from optin_cli.options.images import ImageOptions
from optin_cli.options.scoring import CRITERIA, ScoreOptions

DEFAULTS = ScoreOptions()


def score(
    checkpoint: common.CheckpointArgument,
    calib: Annotated[
        str | None,
        typer.Option(
            "--calib", metavar="TASK|PATH", help="Task name (sst2, cifar10, …), or a file or folder of texts or images."
        ),
    ] = None,
    output: common.Output = None,
    criterion: Annotated[
        str,
        typer.Option(help=f"How units are judged: {', '.join(CRITERIA)}.", autocompletion=completion.criteria),
    ] = DEFAULTS.criterion,
    units: Annotated[
        str, typer.Option(help="What to score: of heads, neurons, channels and, in plain vision transformers, tokens.")
    ] = ",".join(DEFAULTS.units),
    estimator: Annotated[
        str,
        typer.Option(
            help="sketch: all units in a few backward passes; exact: remove each; hybrid: both.",
            autocompletion=completion.estimators,
        ),
    ] = DEFAULTS.estimator,
    rescore: Annotated[
        str,
        typer.Option(
            metavar="SHARES|none",
            help="Shares of the MACs at which, cut and refitted, the model's remaining units are scored anew; "
            "none: score once.",
        ),
    ] = ",".join(map(str, DEFAULTS.rescore)),
    samples: Annotated[int, typer.Option(help="Calibration samples.")] = DEFAULTS.samples,
    exact_samples: Annotated[int, typer.Option(help="Share of them that exact removal sees.")] = DEFAULTS.exact_samples,
    exact_kinds: Annotated[str, typer.Option(help="Kinds that hybrid scores exactly.")] = ",".join(
        DEFAULTS.exact_kinds
    ),
    probes: Annotated[int, typer.Option(help="Backward passes a sample.")] = DEFAULTS.probes,
    output_weight: Annotated[
        float, typer.Option("--lambda", help="Weight of the output term.")
    ] = DEFAULTS.output_weight,
    temperature: Annotated[float, typer.Option("--tau", help="Temperature of the output term.")] = DEFAULTS.temperature,
    batch_size: Annotated[int, typer.Option(help="Samples at once.")] = DEFAULTS.batch_size,
    rows: Annotated[int, typer.Option(help="Candidates x samples at once, for exact removal.")] = DEFAULTS.rows,
    token_exchange: Annotated[
        str,
        typer.Option(
            metavar="SHARE|none",
            help="Share of the MACs at which units and tokens are each cut and refitted, to weigh one against "
            "the other; none: as scored.",
        ),
    ] = f"{DEFAULTS.token_exchange}",
    max_length: Annotated[int | None, typer.Option(help="Longest sample, in tokens. (default: 128)")] = None,
    seq_len: common.SeqLen = None,
    data: common.Data = None,
    text_columns: common.TextColumns = None,
    label_column: common.LabelColumn = None,
    max_unreadable: common.MaxUnreadable = common.MAX_UNREADABLE,
    seed: common.Seed = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted run stopped.")] = False,
    as_json: common.Json = False,
    arch: common.Arch = None,
    arch_args: common.ArchArgs = None,
    architecture: common.ArchitectureFile = None,
    device: common.Device = None,
    force: common.Force = False,
) -> None:
    """Importance of every head, neuron, channel or token, without labels."""
    target = output or f"{common.stem_of(checkpoint)}.scores.safetensors"
    common.require_free(target, force=force)
    import optin_cli as api
    from optin_cli.artifacts.scores import write_scores
    from optin_cli.data.spec import DataSpec
    from optin_cli.scoring.score import forget

    options = ScoreOptions(
        criterion=criterion,
        units=tuple(name.strip() for name in units.split(",")),
        estimator=estimator,
        rescore=() if rescore == "none" else tuple(common.shares_of(rescore, "--rescore")),
        output_weight=output_weight,
        temperature=temperature,
        probes=probes,
        samples=samples,
        exact_samples=exact_samples,
        exact_kinds=tuple(k.strip() for k in exact_kinds.split(",")),
        batch_size=batch_size,
        rows=rows,
        max_length=max_length,
        seed=seed,
        token_exchange=common.share_or_none(token_exchange, "--token-exchange"),
    )
    state = None if target == common.STDIO else Path(f"{target}.partial")
    opened = common.open_checkpoint(checkpoint, arch, arch_args, architecture, device)
    with common.resumable(state), common.progress("scoring") as progress:
        result = api.score(
            opened,
            DataSpec(
                calib,
                data,
                common.columns_of(text_columns),
                label_column,
                images=ImageOptions(max_unreadable=max_unreadable),
            ),
            options,
            seq_len=seq_len,
            state=state,
            resume=resume,
            progress=progress,
        )
    write_scores(target, result, force=force)
    forget(state, options)
    if target == common.STDIO:
        return
    typer.echo(result.header.dump() if as_json else target, nl=not as_json)
