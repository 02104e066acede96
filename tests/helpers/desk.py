"""Commands that are refused in a working directory, and must leave it as it was."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

from helpers.running import call, tree
from safetensors.torch import load_file, save

SCORE = ("score", "bert", "--calib")


class Desk:
    """A working directory that holds the session's files under their own names, to be spoiled one by one."""

    def __init__(self, folder: Path, made: SimpleNamespace) -> None:
        self.folder, self.made = folder, made

    def take(self, *names: str) -> None:
        for name in names:
            source, target = self.made.root / name, self.folder / name
            shutil.copytree(source, target) if source.is_dir() else shutil.copyfile(source, target)

    def config(self, **changes) -> None:
        self.edit("bert/config.json", lambda raw: raw.update(changes))

    def edit(self, name: str, change) -> None:
        path = self.folder / name
        raw = json.loads(path.read_text())
        change(raw)
        path.write_text(json.dumps(raw))

    def weights(self, change, name: str = "bert/model.safetensors") -> None:
        """Change the tensors of a file, keeping its header."""
        path = self.folder / name
        size = int.from_bytes(path.read_bytes()[:8], "little")
        metadata = json.loads(path.read_bytes()[8 : 8 + size]).get("__metadata__")
        state = load_file(path)
        change(state)
        path.write_bytes(save(state, metadata=metadata))


def refused(folder, args, code, words, **options):
    """Run; check the status, the message, and that nothing was written."""
    before = tree(folder)
    result = call(*args, **options)
    assert result.code == code, result.err
    assert result.out == ""
    assert result.err.count("error: ") == 1
    assert "Traceback" not in result.err and "defect of optin:" not in result.err, result.err
    missing = [word for word in words if word not in result.err]
    assert not missing, f"{missing} not in:\n{result.err}"
    assert tree(folder) == before
    return result
