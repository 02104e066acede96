"""Hashing, and writes that appear completely or not at all: renamed from a temporary name beside the target."""

import contextlib
import errno
import hashlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from optin_cli.errors import ArtifactError, OptinError

STDIO = "-"


class OutputError(OptinError):
    """An output that cannot be written."""


def sha256_of(*contents: Path | bytes) -> str:
    """Hex sha256 over files and byte strings, in order."""
    digest = hashlib.sha256()
    for content in contents:
        if isinstance(content, bytes):
            digest.update(content)
            continue
        with content.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def read_bytes(path: str | Path, what: str) -> bytes:
    """Read a file, or standard input for "-" (ArtifactError if it is missing, is a folder, or cannot be read)."""
    if str(path) == STDIO:
        content = sys.stdin.buffer.read()
        if not content:
            raise ArtifactError(f"Standard input is empty; expected a {what} file.")
        return content
    try:
        return Path(path).read_bytes()
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} does not exist; expected a {what} file.") from error
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read as a {what} file: {error.strerror}.") from error


def is_stream(path: Path) -> bool:
    """Whether a path is a device or pipe (/dev/null, /dev/stdout, a FIFO), which is written to but never replaced."""
    return path.exists() and not path.is_file() and not path.is_dir()


def check_output(path: Path, *, force: bool, folder: bool = False) -> None:
    """Refuse an output that exists or cannot be written, before any time is spent.

    force: allow replacing an existing output (never a folder by a file). folder: the output is a folder.
    """
    parent = path.parent
    with explained_os_errors(path):
        if is_stream(path) and not folder:
            return
        if is_stream(path):
            raise OutputError(f"{path} is a device or pipe; expected the name of a folder.")
        if path.exists() and not force:
            raise OutputError(f"{path} already exists.", hint="Pass --force to replace it, or -o to write elsewhere.")
        if path.is_dir() and not folder:
            raise OutputError(f"{path} is a folder; expected a file to write.")
        if not parent.exists():
            raise OutputError(f"The folder {parent} does not exist, so {path.name} cannot be written into it.")
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise OutputError(f"{parent} is not a folder that can be written to.")


@contextlib.contextmanager
def explained_os_errors(path: Path) -> Iterator[None]:
    """Turn operating-system errors while writing `path` into one clear message."""
    try:
        yield
    except OSError as error:
        raise _explained(path, error) from error
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise _explained(path, OSError(int(number[1]), os.strerror(int(number[1])))) from error


def _explained(path: Path, error: OSError) -> OutputError:
    if error.errno == errno.ENOSPC:
        return OutputError(
            f"No space is left on the disk while writing {path}.",
            hint="Free some space or write elsewhere with -o; nothing was left behind.",
        )
    return OutputError(f"{path} cannot be written: {error.strerror or error}.")


def _allowed(mode: int) -> int:
    """The permissions that the process gives new files; temporary files start with fewer."""
    umask = os.umask(0)
    os.umask(umask)
    return mode & ~umask


@contextlib.contextmanager
def atomic_file(path: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` on success, delete it on any failure."""
    check_output(path, force=force)
    if is_stream(path):
        raise OutputError(f"{path} is a device or pipe; expected the name of a file.")
    with explained_os_errors(path):
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(_allowed(0o666))
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; rename it to `path` on success, delete it on any failure.

    With `force`, an existing folder is set aside first and deleted only after the new one is in place.
    """
    check_output(path, force=force, folder=True)
    with explained_os_errors(path):
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        aside = temporary.with_suffix(".old")
        try:
            yield temporary
            temporary.chmod(_allowed(0o777))
            for file in temporary.iterdir():  # safetensors makes files that their owner alone can read
                if file.is_file():
                    file.chmod(_allowed(0o666))
            if path.exists():
                path.replace(aside)
            temporary.replace(path)
        except BaseException:
            if aside.exists() and not path.exists():
                aside.replace(path)
            raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            if aside.is_dir():
                shutil.rmtree(aside, ignore_errors=True)
            else:
                aside.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_files(folder: Path, *, last: str) -> Iterator[Path]:
    """Yield a temporary folder whose files, also those in folders there, move into `folder` on success alone.

    folder: created if missing; its other files stay. last: the file that makes the others valid, moved after all.
    """
    if not folder.exists():
        with atomic_folder(folder) as temporary:
            yield temporary
        return
    with explained_os_errors(folder):
        temporary = Path(tempfile.mkdtemp(prefix=f".{last}.", suffix=".tmp", dir=folder))
        try:
            yield temporary
            for file in sorted(temporary.rglob("*"), key=lambda path: path.name == last):
                place = folder / file.relative_to(temporary)
                if file.is_dir():
                    place.mkdir(exist_ok=True)
                else:
                    file.chmod(_allowed(0o666))
                    file.replace(place)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: str | Path, text: str, *, force: bool = False) -> None:
    """Write text atomically, or to standard output for "-"."""
    if str(path) == STDIO:
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    write_bytes(path, text.encode(), force=force)


def write_bytes(path: str | Path, content: bytes, *, force: bool = False) -> None:
    """Write bytes atomically, or to standard output for "-"."""
    if str(path) == STDIO:
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
        return
    if is_stream(Path(path)):
        with explained_os_errors(Path(path)):
            Path(path).write_bytes(content)
        return
    with atomic_file(Path(path), force=force) as temporary:
        temporary.write_bytes(content)
