"""Paths of an exported file and its record, and whether they may be written."""

from pathlib import Path

from optin_cli.exporting.registry import RECORD, Target
from optin_cli.files import check_output

STEM = "model"


def place_of(output: Path, target: Target) -> Path:
    """The file to write: `output` itself where it has the target's suffix, else model.SUFFIX in that folder."""
    return output if output.suffix == target.suffix and not output.is_dir() else output / f"{STEM}{target.suffix}"


def record_of(path: Path) -> Path:
    """The record of an exported file."""
    return path.with_name(path.name + RECORD)


def check_place(path: Path, *, force: bool) -> None:
    """Refuse a file that exists or cannot be written, before any time is spent."""
    if path.parent.exists():
        for each in (path, record_of(path)):
            check_output(each, force=force)
    else:
        check_output(path.parent, force=force, folder=True)
