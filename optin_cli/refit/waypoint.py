"""Where an interrupted refit of a streamed model goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import ValidationError

from optin_cli.artifacts.manifest import Refit
from optin_cli.errors import ArtifactError
from optin_cli.files import OutputError, atomic_file, explained_os_errors, parse_json, read_bytes
from optin_cli.model.structure import Structure

RECORD = "run.json"
FOLDERS = ("original", "pruned", "blocks")
"""For outputs of blocks of both models, and for blocks that change no more."""


@dataclass(frozen=True)
class Waypoint:
    """A block that a refit has come to, when all before it is finished.

    folder: of the files that the run leaves. fingerprint: of everything that the run depends on. block: its name, None
    at the beginning. report: of the consumers before it, by group name.
    """

    folder: Path
    fingerprint: str
    block: str | None = None
    report: Mapping[str, Refit] = field(default_factory=dict)

    @classmethod
    def begin(cls, folder: Path, fingerprint: str, *, resume: bool) -> Waypoint:
        """The one that an interrupted run has left in a folder, if it is to be resumed; else the first one.

        Raises:
            ArtifactError: another run left it. OutputError: the folder holds something else, or cannot be written.
        """
        record = folder / RECORD
        found = cls(folder, fingerprint)
        if resume and record.exists():
            return found._read(record)
        if folder.exists() and not record.exists():
            raise OutputError(
                f"{folder} exists, where this run would keep what is finished.", hint="Move it, or pass another -o."
            )
        with explained_os_errors(folder):
            shutil.rmtree(folder, ignore_errors=True)
            for name in FOLDERS:
                (folder / name).mkdir(parents=True)
        found.reached(None, {})
        return found

    @property
    def blocks(self) -> Path:
        """The folder of the blocks that change no more."""
        return self.folder / FOLDERS[-1]

    def reached(self, block: str | None, report: Mapping[str, Refit]) -> None:
        """Note that the run has come to a block, from which it is then resumed."""
        content = {
            "fingerprint": self.fingerprint,
            "block": block,
            "report": {name: each.model_dump() for name, each in report.items()},
        }
        with atomic_file(self.folder / RECORD, force=True) as temporary:
            temporary.write_text(json.dumps(content), encoding="utf-8")

    def passed(self, structure: Structure) -> list[str]:
        """Names of the blocks before it (ArtifactError if the model has no block of its name)."""
        names = [block.name for block in structure.blocks]
        if self.block not in (None, *names):
            raise ArtifactError(
                f"{self.folder / RECORD} names the block {self.block!r}, which the model does not have.",
                hint="Leave out --resume to start over.",
            )
        return [] if self.block is None else names[: names.index(self.block)]

    def forget(self) -> None:
        """Remove the files, once the result is safe."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _read(self, record: Path) -> Waypoint:
        try:
            content = parse_json(read_bytes(record, "record of a run"))
            fingerprint, block = content["fingerprint"], content["block"]
            report = {name: Refit.model_validate(each) for name, each in content["report"].items()}
        except (ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
            raise ArtifactError(
                f"{record} is not the record of an interrupted run.", hint="Leave out --resume to start over."
            ) from error
        if fingerprint != self.fingerprint:
            raise ArtifactError(
                f"{self.folder} was left by a run with other options, data or checkpoint, or by another version of "
                "optin.",
                hint="Repeat the interrupted command exactly, or leave out --resume to start over.",
            )
        return replace(self, block=block, report=report)
