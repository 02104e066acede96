"""Outputs appear whole or not at all, whatever goes wrong while they are written."""

import errno
import hashlib
import io
import os
import sys
from pathlib import Path

import pytest

from optin_cli.errors import ArtifactError, OptinError
from optin_cli.files import (
    OutputError,
    atomic_file,
    atomic_files,
    atomic_folder,
    read_bytes,
    sha256_of,
    write_bytes,
    write_text,
)


def fill(path: Path, text):
    """Write into what an atomic context yields: a file, or a folder with one file."""
    (path / "inner" if path.is_dir() else path).write_text(text)


def content(path: Path):
    return (path / "inner" if path.is_dir() else path).read_text()


@pytest.fixture(params=[atomic_file, atomic_folder], ids=["file", "folder"])
def atomic(request):
    return request.param


def test_success_leaves_the_output_alone(atomic, tmp_path):
    for force, text in [(False, "first"), (True, "second")]:
        with atomic(tmp_path / "out", force=force) as temporary:
            assert temporary.parent == tmp_path
            fill(temporary, text)
        assert content(tmp_path / "out") == text
        assert [p.name for p in tmp_path.iterdir()] == ["out"]
    umask = os.umask(0o022)
    os.umask(umask)
    expected = (0o777 if atomic is atomic_folder else 0o666) & ~umask
    assert (tmp_path / "out").stat().st_mode & 0o777 == expected


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt, SystemExit, ValueError, OptinError("no"), OSError(errno.EIO, "bad")]
)
@pytest.mark.parametrize("existing", [False, True])
def test_failure_leaves_nothing_and_harms_nothing(atomic, tmp_path, error, existing):
    out = tmp_path / "out"
    if existing:
        with atomic(out) as temporary:
            fill(temporary, "old")
    expected = OutputError if isinstance(error, OSError) else error if isinstance(error, type) else type(error)
    with pytest.raises(expected), atomic(out, force=True) as temporary:
        fill(temporary, "half")
        raise error
    assert [p.name for p in tmp_path.iterdir()] == ["out"] * existing
    assert not existing or content(out) == "old"


@pytest.mark.parametrize("existing", [False, True])
def test_full_disk_is_an_output_error(atomic, tmp_path, monkeypatch, existing):
    out = tmp_path / "out"
    if existing:
        with atomic(out) as temporary:
            fill(temporary, "old")

    def full(*_args, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OutputError, match="No space is left") as caught, atomic(out, force=True) as temporary:
        fill(temporary, "half")
        monkeypatch.setattr(Path, "write_text", full)
        fill(temporary, "whole")
    assert "nothing was left behind" in caught.value.hint
    assert [p.name for p in tmp_path.iterdir()] == ["out"] * existing


def test_a_failing_rename_restores_the_existing_output(atomic, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with atomic(out) as temporary:
        fill(temporary, "old")
    rename = Path.replace

    def refuse(self, target):
        if self.suffix == ".tmp":
            raise PermissionError(errno.EACCES, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OutputError, match="Permission denied"), atomic(out, force=True) as temporary:
        fill(temporary, "new")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert content(out) == "old"


def test_kinds_replace_each_other(tmp_path):
    out = tmp_path / "out"
    out.write_text("a file")
    with atomic_folder(out, force=True) as temporary:
        fill(temporary, "a folder")
    assert content(out) == "a folder"
    with pytest.raises(OutputError), atomic_file(out, force=True) as temporary:
        fill(temporary, "a file again")
    assert content(out) == "a folder"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_outputs_refused_before_any_work(atomic, tmp_path):
    (tmp_path / "out").write_text("old")
    for path, message in [
        (tmp_path / "out", "already exists"),
        (tmp_path / "none" / "out", "does not exist"),
        (tmp_path / "out" / "inner", "not a folder"),
    ]:
        with pytest.raises(OutputError, match=message), atomic(path):
            pytest.fail("the body must not run")
    with pytest.raises(OutputError) as caught, atomic(tmp_path / "out"):
        pass
    assert "--force" in caught.value.hint


def test_hash_is_that_of_the_joined_content(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 3_000_000)
    expected = hashlib.sha256(b"x" * 3_000_000 + b"tail").hexdigest()
    assert sha256_of(tmp_path / "a", b"tail") == expected


def test_reading_and_writing_streams(tmp_path, monkeypatch, capfdbinary):
    write_text("-", "téxt")
    write_bytes("-", b"\x00bytes")
    assert capfdbinary.readouterr().out == "téxt".encode() + b"\x00bytes"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"piped")))
    assert read_bytes("-", "mask") == b"piped"
    with pytest.raises(ArtifactError, match="Standard input is empty; expected a mask file"):
        read_bytes("-", "mask")
    write_text(tmp_path / "t", "téxt")
    write_bytes(tmp_path / "b", b"\x00")
    assert read_bytes(tmp_path / "t", "mask") == "téxt".encode()
    assert read_bytes(tmp_path / "b", "mask") == b"\x00"
    with pytest.raises(ArtifactError, match="none does not exist; expected a mask file"):
        read_bytes(tmp_path / "none", "mask")
    with pytest.raises(ArtifactError, match="cannot be read as a mask file: Is a directory"):
        read_bytes(tmp_path, "mask")


def test_a_device_is_written_through_and_never_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_text(pipe, "text", force=True)
    assert os.read(reader, 10) == b"text"
    os.close(reader)
    assert pipe.is_fifo()
    with pytest.raises(OutputError, match="device or pipe"), atomic_folder(pipe, force=True):
        pass
    assert pipe.is_fifo()


def test_files_move_into_a_folder_that_is_there_with_the_folders_they_are_in(tmp_path):
    out = tmp_path / "out"
    (out / "inner").mkdir(parents=True)
    (out / "inner" / "old").write_text("stays")
    with atomic_files(out, last="record") as temporary:
        (temporary / "inner").mkdir()
        for name in ("record", "inner/new"):
            (temporary / name).write_text(name)
    found = {str(path.relative_to(out)): path.read_text() for path in out.rglob("*") if path.is_file()}
    assert found == {"record": "record", "inner/new": "inner/new", "inner/old": "stays"}
