"""Reading and hashing, and writes that appear whole or not at all: renamed from a temporary name beside the target."""

import contextlib
import ctypes
import errno
import hashlib
import json
import math
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError

from optin_cli.errors import ArtifactError, OptinError

STDIO = "-"
RECORDS = ("optin.json", "vocabulary.json")
"""Records of the folders that we write: of a pruned model, of one with fewer tokens."""
SCHEMA = b'"schema": "optin.'
"""What our records hold."""
SHORT = 40
"""Letters of an output's name that begin its temporary name, which may not be longer than the system allows."""
MOST_NAME_BYTES = 200
"""Longest name of an output that leaves room, of the 255 bytes that systems allow, for what is called like it."""
MOST_BYTES = 1 << 26
"""No JSON file of ours is larger."""
MOST_FOREIGN_BYTES = 1 << 28
"""Nor is a JSON file of other tools, such as a tokenizer's."""
FILE_SUFFIXES = (".json", ".jsonl", ".safetensors", ".html", ".onnx", ".pt2", ".xml", ".gguf")
"""Endings of files that we read and write, which no folder of ours has."""
MADE_BY = {
    "scores": "optin score CKPT writes one",
    "mask": "optin search SCORES writes one",
    "latency": "optin profile CKPT --latency writes one",
}
"""What writes the artifacts that commands take."""
MOST_LEVELS = 100
"""JSON does not nest more deeply."""


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


def read_bytes(path: str | Path, what: str, most: int = MOST_BYTES) -> bytes:
    """Read a file, or standard input for "-".

    Raises ArtifactError: it is missing, a folder, larger than `most` bytes, or cannot be read.
    """
    named = _named(what)
    if str(path) == STDIO:
        content = _read_at_most(sys.stdin.buffer, most, "Standard input", what) if sys.stdin is not None else b""
        if not content:
            raise ArtifactError(f"Standard input is empty; expected {named}.")
        return content
    try:
        with Path(path).open("rb") as stream:
            return _read_at_most(stream, most, str(path), what)
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} does not exist; expected {named}.", hint=made_by(what)) from error
    except IsADirectoryError as error:
        raise ArtifactError(f"{path} is a folder (a checkpoint?); expected {named}.", hint=made_by(what)) from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ArtifactError(f"{path} cannot be read as {named}: {reason}.") from error


def _named(what: str) -> str:
    """A kind of artifact with its article: a mask file, an export record file."""
    return f"{'an' if what[0] in 'aeiou' else 'a'} {what} file"


def made_by(what: str) -> str | None:
    """Hint that says what writes a kind of artifact; None where that is no command of its own."""
    return f"{MADE_BY[what]}." if what in MADE_BY else None


def looks_like_safetensors(content: bytes) -> bool:
    """Whether bytes begin as a safetensors file does: the length of a JSON header, and the header."""
    return content[8:9] == b"{" and 0 < int.from_bytes(content[:8], "little") < len(content)


def _read_at_most(stream: BinaryIO, most: int, name: str, what: str) -> bytes:
    content = stream.read(most + 1)
    if len(content) > most:
        raise ArtifactError(f"{name} is larger than {most >> 20} MB; expected {_named(what)}.")
    return content


def parse_json(content: str | bytes, *, foreign: bool = False) -> Any:
    """Parse JSON text in UTF-8.

    foreign: a file of other tools, which may hold Infinity.

    Raises ValueError: it is not JSON, too large, nested too deeply, has a key twice, or holds what is no finite number
    or no valid text.
    """
    most = MOST_FOREIGN_BYTES if foreign else MOST_BYTES
    if len(content) > most:
        raise ValueError(f"it is larger than {most >> 20} MB")
    text = content if isinstance(content, str) else content.decode("utf-8")
    constant, number = (_no_nan, float) if foreign else (_no_number, _finite)
    try:
        value = json.loads(text, object_pairs_hook=_once, parse_constant=constant, parse_float=number)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    level, depth = _containers([value]), 0
    while level:
        depth += 1
        if depth > MOST_LEVELS:
            raise ValueError(_TOO_DEEP)
        level = [inner for node in level for inner in _containers(node.values() if isinstance(node, dict) else node)]
    if _SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"it holds half a character, {error.object[error.start : error.end]!a}") from None
    return value


def load_json(path: Path, *, foreign: bool = False) -> Any:
    """Parse a JSON file (OSError if it cannot be read, ValueError as of `parse_json`)."""
    most = MOST_FOREIGN_BYTES if foreign else MOST_BYTES
    with path.open("rb") as stream:
        return parse_json(stream.read(most + 1), foreign=foreign)


_TOO_DEEP = f"it is nested more than {MOST_LEVELS} levels deep"
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def _containers(nodes: Iterable[Any]) -> list[Any]:
    return [node for node in nodes if isinstance(node, (dict, list))]


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for number, name in enumerate(names) if name in names[:number])
        raise ValueError(f"the key {twice!r} is given twice")
    return found


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _no_nan(name: str) -> float:
    return _no_number(name) if name == "NaN" else float(name)


def _finite(text: str) -> float:
    if math.isinf(number := float(text)):
        raise ValueError(f"{text} is too large a number")
    return number


def is_stream(path: Path) -> bool:
    """Whether a path is a device or pipe (/dev/null, /dev/stdout, a FIFO), which is written to but never replaced."""
    return path.exists() and not path.is_file() and not path.is_dir()


def state_of(output: str | Path) -> Path:
    """Where an interrupted run keeps what it has: NAME.partial beside its output, shortened where there is no room."""
    path = Path(output)
    encoded = os.fsencode(path.name)
    if len(encoded) > MOST_NAME_BYTES:
        path = path.with_name(f"{path.name[:SHORT]}-{hashlib.sha256(encoded).hexdigest()[:8]}")
    return path.with_name(f"{path.name}.partial")


def is_ours(folder: Path) -> bool:
    """Whether a folder is empty, or holds the record of a model that we wrote."""
    records = [folder / name for name in RECORDS]
    return not any(folder.iterdir()) or any(
        record.is_file() and SCHEMA in record.read_bytes()[:MOST_BYTES] for record in records
    )


def check_output(path: Path, *, force: bool, folder: bool = False, into: bool = False) -> None:
    """Refuse an output that exists or cannot be written, before any time is spent.

    Args:
        force: allow replacing an existing output, which must not be a folder in the place of a file, nor a folder that
            we did not write.
        folder: the output is a folder. into: files are written into it, which does not replace it.
    """
    parent = path.parent
    with explained_os_errors(path):
        if path.is_socket() or (is_stream(path) and folder):
            what = "a socket" if path.is_socket() else "a device or pipe"
            raise OutputError(f"{path} is {what}; expected the name of a {'folder' if folder else 'file'}.")
        if is_stream(path):
            return
        if folder and path.suffix in FILE_SUFFIXES and not path.is_dir():
            raise OutputError(
                f"{path} is to be a folder, but has the name of a {path.suffix} file.",
                hint=f"Pass -o with the name of a folder, such as {path.with_suffix('').name}.",
            )
        if into and path.is_symlink() and not path.exists():
            raise OutputError(f"{path} is a link that leads nowhere; expected a folder to write into.")
        if os.path.lexists(path) and not force:
            raise OutputError(f"{path} already exists.", hint="Pass --force to replace it, or -o to write elsewhere.")
        if path.is_dir() and not folder:
            raise OutputError(f"{path} is a folder; expected a file to write.")
        if path.is_dir() and not into and not is_ours(path):
            raise OutputError(
                f"{path} is a folder that optin did not write, so it is not replaced: it has no {RECORDS[0]}.",
                hint="Pass -o to write elsewhere, or remove the folder yourself.",
            )
        if not parent.exists():
            raise OutputError(f"The folder {parent} does not exist, so {path.name} cannot be written into it.")
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise OutputError(f"{parent} is not a folder that can be written to.")


def check_apart(path: Path, inputs: Iterable[str | Path | None]) -> None:
    """Refuse an output that is an input, holds one, or would replace a file in one; names that are no paths pass."""
    with explained_os_errors(path):
        for name in inputs:
            if name is None or str(name) == STDIO or not Path(name).exists() or is_stream(Path(name)):
                continue
            # Unlike Path.resolve, this does not stumble over a link that leads to itself.
            output, given = (Path(os.path.realpath(one)) for one in (path, name))
            same = output == given or (path.exists() and path.samefile(given))
            inside = output.is_relative_to(given) and path.exists()
            if same or inside or given.is_relative_to(output):
                how = "is" if same else "lies in" if inside else "holds"
                raise OutputError(
                    f"The output {path} {how} the input {name}, which writing it would destroy.",
                    hint="Pass -o with another file or folder; --force does not allow this.",
                )


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
            hint="Free some space or write elsewhere with -o; nothing half-written was left behind.",
        )
    return OutputError(f"{path} cannot be written: {error.strerror or error}.")


def allowed_mode(mode: int) -> int:
    """The permissions that the process gives new files; temporary files start with fewer."""
    umask = os.umask(0)
    os.umask(umask)
    return mode & ~umask


NOREPLACE, EXCHANGE = 1, 2
"""Flags of renameat2."""
AT_WORKING_FOLDER = -100


def _renameat2(source: Path, target: Path, flag: int) -> bool:
    """Rename as one step of the file system, without replacing or by exchange; False where the system cannot."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if call is None:
        return False
    if call(AT_WORKING_FOLDER, os.fsencode(source), AT_WORKING_FOLDER, os.fsencode(target), flag) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(target))


def _publish(temporary: Path, path: Path, *, force: bool) -> None:
    """Give what is finished its name. Only with `force` is anything replaced, which then has the temporary name.

    Raises OutputError: without `force`, another process made `path` meanwhile.
    """
    is_folder = temporary.is_dir()
    if not (force and os.path.lexists(path)):
        try:
            if _renameat2(temporary, path, NOREPLACE):
                return
        except FileExistsError as error:
            raise OutputError(
                f"{path} was written by another process meanwhile, and is left as it is.",
                hint="Pass --force to replace it, or -o to write elsewhere.",
            ) from error
        check_output(path, force=force, folder=is_folder)
    elif is_folder:
        if not _renameat2(temporary, path, EXCHANGE):
            _exchange_by_steps(temporary, path)
        return
    temporary.replace(path)


def _exchange_by_steps(temporary: Path, path: Path) -> None:
    """Replace a folder where the system cannot exchange two names."""
    backup = _backup_of(path)
    path.replace(backup)
    try:
        temporary.replace(path)
    except BaseException:
        backup.replace(path)
        raise
    _remove(backup)


def _backup_of(path: Path) -> Path:
    """Where a folder waits while another takes its place, where the system cannot exchange the two."""
    return path.with_name(f".{path.name[:SHORT]}.old")


def _restore(path: Path) -> None:
    """Put back a folder that a process which was killed had moved out of the way."""
    backup = _backup_of(path)
    if os.path.lexists(backup) and not os.path.lexists(path):
        backup.replace(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_file(path: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` on success, delete it on any failure."""
    check_output(path, force=force)
    if is_stream(path):
        raise OutputError(f"{path} is a device or pipe; expected the name of a file.")
    with explained_os_errors(path):
        handle, name = tempfile.mkstemp(prefix=f".{path.name[:SHORT]}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(allowed_mode(0o666))
            _publish(temporary, path, force=force)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; rename it to `path` on success, delete it on any failure.

    With `force`, an existing folder and the new one exchange their names in one step where the system can. Elsewhere
    the existing one waits under another name, from which the next run restores it if this one is killed.
    """
    with explained_os_errors(path):
        _restore(path)
    check_output(path, force=force, folder=True)
    with explained_os_errors(path):
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name[:SHORT]}.", suffix=".tmp", dir=path.parent))
        try:
            yield temporary
            temporary.chmod(allowed_mode(0o777))
            for file in temporary.iterdir():  # safetensors makes files that their owner alone can read
                if file.is_file():
                    file.chmod(allowed_mode(0o666))
            _publish(temporary, path, force=force)
        finally:
            if os.path.lexists(temporary):
                _remove(temporary)


@contextlib.contextmanager
def unbroken() -> Iterator[None]:
    """Hold signals back for a moment, so that what belongs together is done as a whole or not at all."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def move_all(moves: Sequence[tuple[Path, Path]]) -> None:
    """Rename finished files that belong together to their names, one right after the other.

    Where one cannot be renamed, those before it are taken back, and what they replaced is there again. What is replaced
    keeps its temporary name until the caller removes it, or is gone where the system cannot exchange two names.
    """
    moved: list[tuple[Path, Path, bool]] = []
    with unbroken():
        try:
            for temporary, path in moves:
                exchanged = path.is_file() and not path.is_symlink() and _renameat2(temporary, path, EXCHANGE)
                if not exchanged:
                    temporary.replace(path)
                moved.append((temporary, path, exchanged))
        except OSError:
            for temporary, path, exchanged in reversed(moved):
                if not (exchanged and _renameat2(path, temporary, EXCHANGE)):
                    path.replace(temporary)
            raise


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
            moves = []
            for file in sorted(temporary.rglob("*"), key=lambda path: path.name == last):
                place = folder / file.relative_to(temporary)
                if file.is_dir():
                    place.mkdir(exist_ok=True)
                else:
                    file.chmod(allowed_mode(0o666))
                    moves.append((file, place))
            move_all(moves)
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
