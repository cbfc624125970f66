"""Files and folders that survive: written whole or not at all, and not by two programs at once."""
import contextlib
import os
import secrets
from pathlib import Path

from .errors import UserError

PARTIAL = ".partial"  # what a killed process may leave ends in this


def write_whole(path, data):
    """Write bytes to a file by way of another one beside it, which is renamed when everything is on the disk. Links are followed; what
    is there and no file, such as /dev/stdout, is written to directly.

    Returns:
        The path of the file itself, a `Path`.
    """
    path = Path(path).resolve()
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return path
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}{PARTIAL}")
    try:
        with open(partial, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        sync(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return path


def sync(path):
    """Wait until a file, or the names in a folder, are on the disk."""
    if os.name == "nt" and os.path.isdir(path):  # Windows cannot open folders
        return
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock_folder(path):
    """Take a folder for this process.

    Returns:
        A context manager, entered already, that holds it until it is left or the process ends, however it ends. Where the system or the
        file system has no such locks, nothing is locked.

    Raises:
        UserError: another process has it.
    """
    held = contextlib.ExitStack()
    try:
        import fcntl
    except ImportError:  # Windows
        return held
    descriptor = os.open(path, os.O_RDONLY)
    held.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        held.close()
        raise UserError(f"Another process is writing to {path}: wait for its end, or choose another folder with --output.") from None
    except OSError:  # some network file systems
        pass
    return held
