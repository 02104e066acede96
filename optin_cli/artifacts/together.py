"""Write files that belong together, such as a result and the card that quotes it. No torch is imported."""

import contextlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from optin_cli.files import SHORT, allowed_mode, check_output, explained_os_errors, move_all


def write_together(texts: Mapping[Path, str], *, force: bool = False) -> None:
    """Write several files: all are finished under temporary names before the first takes its own.

    So a full disk, a folder that cannot be written to or an interruption leaves every file as it was. Only a process
    that is killed between two renames leaves some new and some old; writing again puts that right.

    Raises OutputError: one exists and `force` is not given, or cannot be written.
    """
    for path in texts:
        check_output(path, force=force)
    with contextlib.ExitStack() as stack:
        moves = []
        for path, text in texts.items():
            stack.enter_context(explained_os_errors(path))
            handle, name = tempfile.mkstemp(prefix=f".{path.name[:SHORT]}.", suffix=".tmp", dir=path.parent)
            os.close(handle)
            temporary = Path(name)
            stack.callback(temporary.unlink, missing_ok=True)
            temporary.write_bytes(text.encode())
            temporary.chmod(allowed_mode(0o666))
            moves.append((temporary, path))
        move_all(moves)
