"""Files in which tensors wait for the block that needs them next."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from optin_cli.errors import ArtifactError
from optin_cli.files import OutputError, explained_os_errors
from optin_cli.model.replay import store
from optin_cli.scoring.accumulate import SavedState

PART = "streamed"
"""What the name of the folder of such files ends with."""


@dataclass(frozen=True)
class Spill:
    """A folder of them, by what they hold, the place of the block that they wait for, and the number of the batch."""

    folder: Path

    def put(self, what: str, place: int, batch: int, value: Any) -> None:
        """Write tensors (OutputError where the disk has no room)."""
        store(value, self._path(what, place, batch))

    def get(self, what: str, place: int, batch: int) -> Any:
        """Tensors, memory-mapped (ArtifactError where an interrupted run left them and they are gone)."""
        path = self._path(what, place, batch)
        if not path.is_file():
            raise ArtifactError(
                f"{path} is gone, from which the interrupted run would go on.", hint="Leave out --resume to start over."
            )
        return torch.load(path, weights_only=True, mmap=True)

    def drop(self, what: str, place: int) -> None:
        """Remove what no block waits for any more."""
        for path in self.folder.glob(f"{what}.{place}.*"):
            path.unlink()

    def require_room(self, size: int) -> None:
        """Refuse a disk that does not hold so many bytes more, before time is spent (OutputError)."""
        free = shutil.disk_usage(self.folder).free
        if size > free:
            raise OutputError(
                f"The inputs of all blocks take {size / 2**30:.1f} GiB, but the disk of {self.folder} has "
                f"{free / 2**30:.1f} GiB left.",
                hint="Use fewer --samples, or write the output to a larger disk with -o.",
            )

    def _path(self, what: str, place: int, batch: int) -> Path:
        return self.folder / f"{what}.{place}.{batch}"


@contextlib.contextmanager
def spilling(state: SavedState) -> Iterator[Spill]:
    """Files beside the state of a run, which an interrupted run leaves with it; temporary ones where none is kept."""
    folder = state.part(PART).path
    if folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            yield Spill(Path(temporary))
        return
    if not (state.resume and state.path is not None and state.path.exists()):
        forget_spill(state)
    with explained_os_errors(folder):
        folder.mkdir(exist_ok=True)
    yield Spill(folder)


def forget_spill(state: SavedState) -> None:
    """Remove the files of a run that is over."""
    folder = state.part(PART).path
    if folder is not None and folder.is_dir():
        shutil.rmtree(folder)
