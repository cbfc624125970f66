"""Files and folders that survive: written whole or not at all, not by two programs at once, and read with a
digest of what was written."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import stat
from pathlib import Path
from typing import TextIO

from .errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_PARTIAL = ".{name}.{random}.partial"  # what a killed process may leave
_SEAL = 64  # the digits of a SHA-256


def write_whole(path: str | Path, data: bytes) -> Path:
    """Write bytes to a file by way of another one beside it, which is renamed when everything is on the disk.
    Links are followed; what is there and no file, such as /dev/stdout, is written to directly.

    Returns:
        The path of the file itself, a `Path`.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        Path(path).write_bytes(data)
        return Path(path)
    path = Path(path).resolve()
    _write_together({path: data})
    return path


def write_together(folder: str | Path, contents: dict[str, bytes]) -> None:
    """Write files that belong together into a folder, which is made if needed: none of them takes its place
    before all are on the disk.

    Args:
        folder: path; other files in it stay.
        contents: dict from name to bytes.
    """
    os.makedirs(folder, exist_ok=True)
    # A link in a file's place is replaced, and what it leads to stays.
    _write_together({Path(folder).resolve() / name: data for name, data in contents.items()})


def _write_together(contents):
    partials = {
        path: path.with_name(_PARTIAL.format(name=path.name, random=secrets.token_hex(8)))
        for path in contents
    }
    try:
        for path, partial in partials.items():
            with open(partial, "xb") as file:
                file.write(contents[path])
                file.flush()
                os.fsync(file.fileno())
        for path, partial in partials.items():
            os.replace(partial, path)
        for folder in {path.parent for path in contents}:
            sync(folder)
    except BaseException:
        for partial in partials.values():
            partial.unlink(missing_ok=True)
        raise


def is_partial(name: str) -> bool:
    """Whether a file of this name was left by a `write_whole` that was killed."""
    return bool(re.fullmatch(_PARTIAL.replace(".", r"\.").format(name=".+", random="[0-9a-f]{16}"), name))


def read_whole(path: str | Path, limit: int) -> bytearray:
    """The bytes of a file of at most `limit` of them. What is no file, such as a link to a device that never
    ends or a pipe that nobody writes to, is not waited for.

    Raises:
        OSError: it cannot be read; ValueError: it is no file, or larger.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is no file")
        if status.st_size > limit:
            raise ValueError(f"{status.st_size} bytes are too many, more than {limit}")
        data = bytearray(status.st_size)
        with open(descriptor, "rb", closefd=False) as file:
            del data[file.readinto(data) :]
    finally:
        os.close(descriptor)
    return data


def check_target(path: str, option: str, may_make_folder: bool = False) -> None:
    """UserError if no file can be written to a path, known before the work is done whose result it is for.

    Args:
        path: the file.
        option: where the path comes from, for the message.
        may_make_folder: whether its folder is made if needed.
    """
    if path in ("", "-") or os.path.isdir(path) or path.endswith(os.sep):
        raise UserError(f"{option} is {path!r}, but must name a file, and no folder.")
    if os.path.exists(path) and not os.path.isfile(path):
        return
    folder = os.path.dirname(os.path.realpath(path))
    while may_make_folder and not os.path.exists(folder):
        folder = os.path.dirname(folder)
    probe = Path(folder, _PARTIAL.format(name=os.path.basename(path), random=secrets.token_hex(8)))
    try:
        with contextlib.suppress(FileNotFoundError):
            os.lstat(path)  # a name too long, a file where a folder should be
        with open(probe, "xb"):
            pass
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"{option} is {path}, where no file can be written ({error.strerror}): choose another one."
        ) from None


def digest_of(data: bytes) -> str:
    """SHA-256 of bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def sealed(data: bytes) -> bytes:
    """Bytes with their digest after them. Pickles and libraries may have something after their end."""
    return data + digest_of(data).encode()


def unsealed(data: bytes) -> memoryview | None:
    """The bytes that `sealed` was given; None if a bit of what it returned has changed."""
    view = memoryview(data)
    return view[:-_SEAL] if view[-_SEAL:] == digest_of(view[:-_SEAL]).encode() else None


def sync(path: str | Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if os.name == "nt" and os.path.isdir(path):  # Windows cannot open folders
        return
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def discard(stream: TextIO) -> None:
    """Let a stream that nobody reads any more go nowhere: Python would try it again at the end."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def lock_folder(path: str | Path) -> contextlib.ExitStack:
    """Take a folder for this process.

    Returns:
        A context manager, entered already, that holds it until it is left or the process ends, however it
        ends. Where the system or the file system has no such locks, nothing is locked.

    Raises:
        UserError: another process has it.
    """
    held = contextlib.ExitStack()
    if fcntl is None:
        return held
    descriptor = os.open(path, os.O_RDONLY)
    held.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        held.close()
        raise UserError(
            f"Another process is writing to {path}: wait for its end, or choose another folder with --output."
        ) from None
    except OSError:  # some network file systems
        pass
    return held
