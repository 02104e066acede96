"""Where the inputs and outputs of a report's commands lie, seen from the directory that the commands are for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optin_cli.artifacts.base import Source
from optin_cli.artifacts.reading import Read
from optin_cli.artifacts.sweep import RESULT
from optin_cli.reporting.evidence import Evidence


@dataclass(frozen=True)
class Places:
    """Names files as the commands do.

    base: the directory that the commands are run in, resolved. known: of sources, by hash, from it.
    """

    base: Path | None
    known: dict[str, str]

    @classmethod
    def of(cls, evidence: Evidence) -> Places:
        """The places of the evidence; inputs lie where the artifacts record them."""
        places = cls(_base(evidence), {})
        for read in evidence.reads:
            sources = {role: source for role, source in read.head.inputs.items() if role != "mask"}
            places.known.update({source.sha256: source.path for source in sources.values() if source.path})
        files: tuple[Read[Any] | None, ...] = (evidence.mask, evidence.scores)
        places.known.update({read.sha256: places.file(read) for read in files if read is not None})
        if evidence.pruned is not None and evidence.cut is not None:
            places.known[evidence.pruned.sha256] = places._from_base(evidence.cut)
        return places

    def name(self, source: Source) -> str:
        """What a command calls an input."""
        return self.known.get(source.sha256, source.place)

    def file(self, read: Read[Any]) -> str:
        """What a command calls the file of an artifact."""
        return read.name if read.folder is None else self._from_base(read.folder / read.name)

    def folder(self, read: Read[Any]) -> str | None:
        """What a command calls the folder that an artifact lies in; None if that is the base."""
        name = None if read.folder is None else self._from_base(read.folder)
        return None if name == "." else name

    def _from_base(self, path: Path) -> str:
        whole = path.resolve()
        inside = self.base is not None and whole.is_relative_to(self.base)
        return whole.relative_to(self.base).as_posix() if inside and self.base else path.name


def _base(evidence: Evidence) -> Path | None:
    """The directory from which the recorded path of the pruned model leads to it; else what holds the artifacts."""
    if evidence.cut is not None and evidence.pruned is not None:
        cut = evidence.cut.resolve()
        inputs = [source for read in evidence.evaluations for source in read.head.inputs.values()]
        written = next((one.path for one in inputs if one.sha256 == evidence.pruned.sha256 and one.path), cut.name)
        above = _without(cut, Path(written))
        if above is not None and not (above / RESULT).is_file():
            return above
        return cut.parent.parent if (cut.parent / RESULT).is_file() else cut.parent
    folder = next((read.folder for read in evidence.reads if read.folder is not None), None)
    if folder is None:
        return None
    return folder.resolve().parent if (folder / RESULT).is_file() else folder.resolve()


def _without(path: Path, end: Path) -> Path | None:
    """The path before its last parts, which are `end`; None if they are not."""
    size = len(end.parts)
    return path.parents[size - 1] if path.parts[-size:] == end.parts else None
