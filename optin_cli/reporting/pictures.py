"""Find the pictures that an evaluation drew, by the hashes that it records, to be shown in the page itself."""

from collections.abc import Iterator
from pathlib import Path

from optin_cli.artifacts.evaluation import DrawnScene, Evaluation
from optin_cli.artifacts.reading import Read
from optin_cli.files import sha256_of
from optin_cli.progress import SILENT, Progress
from optin_cli.reporting.evidence import Evidence

SHOWN = 3
"""Pictures of an evaluation that a page shows; each takes about half a megabyte."""


def find_pictures(evidence: Evidence, progress: Progress = SILENT) -> dict[str, bytes]:
    """PNG files by sha256, of the first pictures of every evaluation; a note says whose were not found.

    They are looked for beside the evaluation's file and in the folders there.
    """
    found: dict[str, bytes] = {}
    for read in evidence.evaluations:
        for picture in read.content.pictures[:SHOWN]:
            path = next(_candidates(read, picture), None)
            if path is None:
                progress.note(f"Left out the pictures of {read.name}: {picture.file} does not lie beside it any more.")
                break
            found[picture.sha256] = path.read_bytes()
    return found


def _candidates(read: Read[Evaluation], picture: DrawnScene) -> Iterator[Path]:
    if read.folder is None:
        return
    folders = sorted(path for path in read.folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    for folder in (read.folder, *folders):
        path = folder / picture.file
        if path.is_file() and sha256_of(path) == picture.sha256:
            yield path
