"""`optin demo`: run the five stages offline on an embedded classifier, and leave the artifacts in a folder."""

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from optin_cli.cli import common
from optin_cli.errors import OptinError
from optin_cli.files import explained_os_errors

NAME = "bert-sst2"
STAGES = (
    ["profile", NAME, "-o", f"{NAME}.profile.json"],
    ["score", NAME, "--calib", "train.jsonl"],
    ["search", f"{NAME}.scores.safetensors", "--keep-flops", "0.4"],
    ["prune", NAME, "--mask", f"{NAME}.mask.json", "--calib", "train.jsonl"],
    ["eval", f"{NAME}-pruned", "--task", "sst2", "--data", "validation.jsonl", "--against", NAME],
)


def demo(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to leave the artifacts.")] = Path("optin-demo"),
    force: common.Force = False,
) -> None:
    """Shrink an embedded BERT classifier, offline, in about a minute."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not force:
        raise OptinError(f"{folder} already exists.", hint="Pass another folder, or --force to write into it.")
    common.require_free(folder, force=True, folder=True, into=True)
    with _whole(folder):
        with explained_os_errors(folder):
            _fill(folder)
        common.say(f"$ cd {folder}")
        _run(context, folder, force=force)
    _print_result(folder / f"{NAME}-pruned.eval.json")
    common.say(f"All of it on one page: optin report {folder}")


@contextlib.contextmanager
def _whole(folder: Path) -> Iterator[None]:
    """Remove the folder if the demo fails or is interrupted, unless it held something before."""
    fresh = not folder.exists() or not any(folder.iterdir())
    try:
        yield
    except BaseException:
        if fresh:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _fill(folder: Path) -> None:
    """Copy checkpoint and data into the folder."""
    source = Path(__file__).parent.parent / "demo"
    copies = {path: folder / NAME / path.name for path in sorted((source / "checkpoint").iterdir())}
    copies |= {source / "data" / name: folder / name for name in ("train.jsonl", "validation.jsonl")}
    (folder / NAME).mkdir(parents=True, exist_ok=True)
    for path, place in copies.items():
        shutil.copyfile(path, place)


def _run(context: typer.Context, folder: Path, *, force: bool) -> None:
    """Run the stages in the folder."""
    with _inside(folder):
        for stage in STAGES:
            command = [*stage, "--force"] if force else stage
            common.say(f"\n$ optin {' '.join(command)}")
            with contextlib.redirect_stdout(sys.stderr):
                common.run(context.find_root().command, command)


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _print_result(path: Path) -> None:
    """What the smaller model is worth, in three lines; the table of the last stage says the rest."""
    from optin_cli.artifacts.base import parse
    from optin_cli.artifacts.evaluation import Evaluation

    result = parse(Evaluation, path.read_bytes(), str(path))
    other, speed = result.against, result.latency
    if other is None or other.metric is None or result.metric is None or speed is None or other.drop is None:
        raise OptinError(f"{path} lacks the comparison that the demo made.")
    error = "" if other.drop_error is None else f" ± {other.drop_error:.4f}"
    lines = [
        f"{result.metric.name}, {result.samples} sentences: {other.metric.value:.4f} before, "
        f"{result.metric.value:.4f} after (change {-other.drop:+.4f}{error})",
        f"MACs: {other.macs_ratio:.3f} of those before",
    ]
    if other.latency_ratio is not None:
        lines.append(f"latency: {other.latency_ratio:.3f} of that before ({speed.timed_on})")
    common.show("\n".join(lines))
