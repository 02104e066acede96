"""Outputs appear whole or not at all, whatever goes wrong while they are written."""

import errno
import hashlib
import io
import json
import os
import sys
from pathlib import Path

import pytest

from optin_cli import files
from optin_cli.errors import ArtifactError, OptinError
from optin_cli.files import (
    OutputError,
    atomic_file,
    atomic_files,
    atomic_folder,
    check_apart,
    parse_json,
    read_bytes,
    sha256_of,
    write_bytes,
    write_text,
)


def fill(path: Path, text):
    """Write into what an atomic context yields: a file, or a folder with one file."""
    (path / "inner" if path.is_dir() else path).write_text(text)


def ours(folder: Path):
    """Make a folder one that optin wrote."""
    if folder.is_dir():
        (folder / "optin.json").write_text('{"schema": "optin.manifest/1"}')


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
            ours(temporary)
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
            ours(temporary)
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
            ours(temporary)

    def full(*_args, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OutputError, match="No space is left") as caught, atomic(out, force=True) as temporary:
        fill(temporary, "half")
        monkeypatch.setattr(Path, "write_text", full)
        fill(temporary, "whole")
    assert "nothing half-written was left behind" in caught.value.hint
    assert [p.name for p in tmp_path.iterdir()] == ["out"] * existing


def no_exchange(_source, _target, _flag):
    """A system without renameat2."""
    return False


def test_a_failing_rename_restores_the_existing_output(atomic, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with atomic(out) as temporary:
        fill(temporary, "old")
        ours(temporary)
    monkeypatch.setattr(files, "_renameat2", no_exchange)
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
    with pytest.raises(ArtifactError, match=r"is a folder \(a checkpoint\?\); expected a mask file"):
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


# What is replaced, and what is not


def old_and_new(atomic, out, **options):
    with atomic(out) as temporary:
        fill(temporary, "old")
        ours(temporary)
    with atomic(out, **options) as temporary:
        fill(temporary, "new")


@pytest.mark.parametrize("system", [files._renameat2, no_exchange], ids=["renameat2", "without"])
def test_replacing_leaves_the_new_output_alone(atomic, tmp_path, monkeypatch, system):
    monkeypatch.setattr(files, "_renameat2", system)
    old_and_new(atomic, tmp_path / "out", force=True)
    assert content(tmp_path / "out") == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("system", [files._renameat2, no_exchange], ids=["renameat2", "without"])
def test_the_second_of_two_runs_is_refused(atomic, tmp_path, monkeypatch, system):
    monkeypatch.setattr(files, "_renameat2", system)
    out = tmp_path / "out"
    with pytest.raises(OutputError, match=r"out (was written by another process|already exists)"), atomic(out) as mine:
        fill(mine, "mine")
        with atomic(out) as theirs:
            fill(theirs, "theirs")
    assert content(out) == "theirs"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_folder_is_there_at_every_instant_while_it_is_replaced(tmp_path, monkeypatch):
    seen = []
    system = files._renameat2

    def watched(*args):
        seen.append(content(tmp_path / "out") if args[2] == files.EXCHANGE else None)
        done = system(*args)
        seen.append(content(tmp_path / "out"))
        return done

    monkeypatch.setattr(files, "_renameat2", watched)
    monkeypatch.setattr(Path, "replace", lambda *_: pytest.fail("two renames leave a gap"))
    old_and_new(atomic_folder, tmp_path / "out", force=True)
    assert seen == [None, "old", "old", "new"]


def test_a_backup_is_restored_by_the_next_run(tmp_path):
    (tmp_path / ".out.old").mkdir()
    fill(tmp_path / ".out.old", "old")
    with pytest.raises(OutputError, match="already exists"), atomic_folder(tmp_path / "out"):
        pass
    assert content(tmp_path / "out") == "old"


@pytest.mark.parametrize("name", ["optin.json", "thesis.tex"])
def test_a_folder_of_others_is_not_replaced(tmp_path, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("work")
    with pytest.raises(OutputError, match="did not write"), atomic_folder(tmp_path / "out", force=True):
        pass
    assert (tmp_path / "out" / name).read_text() == "work"


def test_a_link_is_replaced_and_what_it_leads_to_stays(atomic, tmp_path):
    out, real = tmp_path / "out", tmp_path / "real"
    with atomic(real) as temporary:
        fill(temporary, "real")
        ours(temporary)
    for target in ("nothing", "out", "real"):
        out.symlink_to(target)
        with pytest.raises(OutputError), atomic(out):
            pass
        assert out.is_symlink()
        with atomic(out, force=True) as temporary:
            fill(temporary, "new")
        assert not out.is_symlink() and content(out) == "new" and content(real) == "real"
        files._remove(out)
    assert [p.name for p in tmp_path.iterdir()] == ["real"]


@pytest.mark.parametrize("length", [242, 255])
def test_names_may_be_as_long_as_the_system_allows(atomic, tmp_path, length):
    with atomic(tmp_path / ("o" * length)) as temporary:
        fill(temporary, "new")
    assert content(tmp_path / ("o" * length)) == "new"


@pytest.mark.parametrize(
    ("output", "given", "how"),
    [
        ("in", "in", "is"),
        ("link", "in", "is"),
        (".", "in", "holds"),
        ("in/file", "in", "lies in"),
        ("in/file", "in/file", "is"),
        ("in/../in", "in", "is"),
    ],
)
def test_outputs_that_would_destroy_an_input_are_refused(tmp_path, output, given, how):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "file").write_text("work")
    (tmp_path / "link").symlink_to("in")
    with pytest.raises(OutputError, match=f"{how} the input"):
        check_apart(tmp_path / output, [None, "-", "no such task", tmp_path / given])


@pytest.mark.parametrize("target", ["link", "nowhere"])
def test_links_that_lead_nowhere(tmp_path, target):
    (tmp_path / "in").mkdir()
    link = tmp_path / "link"
    link.symlink_to(target)
    check_apart(link, [tmp_path / "in", link])
    with pytest.raises(OutputError, match="already exists"):
        files.check_output(link, force=False)
    files.check_output(link, force=True)
    with pytest.raises(OutputError, match="leads nowhere; expected a folder to write into"):
        files.check_output(link, force=True, folder=True, into=True)


def test_outputs_beside_an_input_pass(tmp_path):
    (tmp_path / "in").mkdir()
    check_apart(tmp_path / "out", [tmp_path / "in"])
    check_apart(tmp_path / "in" / "new", [tmp_path / "in"])


# JSON


@pytest.mark.parametrize("content", [b'{"a": [1, 2.5, null, true, "t\xc3\xa9"]}', "[]", b'"\\ud83d\\ude00"', b"-0.0"])
def test_json_is_read_as_it_is(content):
    assert parse_json(content) == json.loads(content)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "Expecting value"),
        (b"\xff", "utf-8"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' is given twice"),
        ("[NaN]", "NaN is not a number"),
        ("[-Infinity]", "-Infinity is not a number"),
        ("[1e999]", "1e999 is too large"),
        ("[" * 101 + "]" * 101, "nested more than 100 levels"),
        ("[" * 100_000, "nested more than 100 levels"),
        ('{"a":' * 100_000, "nested more than 100 levels"),
        (r'["\ud800"]', "half a character"),
        (r'{"\udfff": 1}', "half a character"),
        (f"[{'1' * 5000}]", "digits"),
    ],
)
def test_json_that_is_refused(content, words):
    with pytest.raises(ValueError, match=words):
        parse_json(content)


def test_other_tools_may_write_infinity():
    assert parse_json("[Infinity]", foreign=True) == [float("inf")]
    with pytest.raises(ValueError, match="twice"):
        parse_json('{"a": 1, "a": 2}', foreign=True)
    with pytest.raises(ValueError, match="NaN is not a number"):
        parse_json("[NaN]", foreign=True)


def test_input_without_end_is_read_to_a_limit():
    with pytest.raises(ArtifactError, match="/dev/zero is larger than 64 MB; expected a mask file"):
        read_bytes("/dev/zero", "mask")


@pytest.mark.parametrize(
    ("name", "state"), [("s.safetensors", "s.safetensors.partial"), ("n" * 200, "n" * 200 + ".partial")]
)
def test_the_state_of_a_run_lies_beside_its_output(tmp_path, name, state):
    assert files.state_of(tmp_path / name) == tmp_path / state


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127, "🙂" * 60])
def test_the_state_of_a_run_has_room_beside_any_name(tmp_path, name):
    states = [files.state_of(tmp_path / each) for each in (name, name[:-1] + "y")]
    assert states[0] != states[1]
    for state in states:
        state.with_name(state.name + ".of.something").write_text("there is room")
