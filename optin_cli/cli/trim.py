"""`optin trim`: a checkpoint that knows only the tokens that texts use."""

from pathlib import Path
from typing import Annotated

from optin_cli.cli import common
from optin_cli.cli.parameters import command
from optin_cli.errors import UsageError
from optin_cli.options.declare import Option, offer
from optin_cli.options.trim import TrimOptions

CORPUS = Option("--calib", "Texts whose tokens stay.", metavar="TASK|PATH", unset="none")


@command
def trim(
    checkpoint: common.CheckpointArgument,
    *,
    output: Annotated[str | None, common.output("NAME-trimmed", "Folder to write.")] = None,
    data: Annotated[common.Data, offer("path", "columns", source=CORPUS)],
    options: TrimOptions,
    threads: common.Threads = None,
    as_json: common.Json = False,
    opening: common.Opening,
    force: common.Force = False,
) -> None:
    """Leave out tokens that texts never use: fewer bytes, the same outputs, still a stock folder."""
    target = Path(output or f"{common.stem_of(checkpoint)}-trimmed")
    if str(target) == common.STDIO:
        raise UsageError("A checkpoint is a folder and cannot go to stdout.", hint="Pass -o FOLDER.")
    inputs = (checkpoint, *data.files, *opening.files, options.keep_tokens)
    common.require_free(target, force=force, inputs=inputs, folder=True)
    with common.progress("trimming") as progress:
        stage = common.Stage(progress)
        from optin_cli.cli.tables import vocabulary_table
        from optin_cli.trimming.trim import trim as trim_checkpoint

        common.use_threads(threads)
        opened = opening.load(checkpoint)
        record = trim_checkpoint(opened, target, data.spec(), options=options, force=force, progress=stage)
        took = stage.took(opened.device)
    proof, folder = record.proof, f"{str(target).rstrip('/')}/"
    same = (
        f"checked: {proof.texts:,} texts and {proof.trials:,} random ones tokenize as before; {proof.loader}: outputs "
        f"of {proof.rows} texts differ by {proof.difference:.2g} (tolerance {proof.tolerance:.2g})"
    )
    then = [["eval", folder, "--against", checkpoint, "--data", "PATH", "# or --task NAME"]]
    common.finish(f"trim {checkpoint}", [vocabulary_table(record), same], took, then=then)
    common.print_result(record.dump_with(took), folder, as_json=as_json)
