"""How a command runs and ends: what goes wrong becomes one sentence and an exit status, here and nowhere
else."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from typing import Any, Callable

from ..engine.device import prepare
from ..engine.processes import launched, started_rank
from ..engine.signals import Interrupted, signals_go_to
from ..errors import UserError
from ..files import discard

FAILED, STOPPED = 2, 130

_RESUME = "; a training run that has begun continues with --resume."
_MACHINE = {
    errno.EPIPE: "Nobody reads the output any more, so this ends: write it to a file instead" + _RESUME,
    errno.ENOSPC: "The disk is full{place}: free some space" + _RESUME,
    errno.EDQUOT: "The disk quota is used up{place}: free some space" + _RESUME,
    errno.EFBIG: "A file may not become that large here{place}: raise the limit" + _RESUME,
    errno.EROFS: "The file system is read-only{place}: choose another folder.",
    errno.EACCES: "Permission is missing{place}: choose another folder or change its permissions.",
    errno.EPERM: "Permission is missing{place}: choose another folder or change its permissions.",
    errno.ENOTDIR: "A part of the path is not a folder{place}: choose another one.",
    errno.ENAMETOOLONG: "The path is too long{place}: choose another one.",
    errno.EISDIR: "There is a folder where a file is to be written{place}: choose another name.",
    errno.EEXIST: "There is something in the way{place}: choose another name.",
    errno.ENOENT: "There is no such file or folder{place}: choose another one.",
    errno.ELOOP: "The path has too many links{place}: choose another one.",
    errno.EIO: "The disk reports an error{place}: choose another folder, on another disk.",
}
_MEMORY = (
    "There is not enough memory for these settings; lower --chunk, --distortions, or what makes the network "
    "or an episode large."
)


def run_command(command: Callable[[Any], int | None], argument: Any) -> int:
    """Call command(argument); its result, or what the failure stands for, is the exit status: 0, 2 for a
    failure that the user can mend, 130 after SIGINT, SIGTERM or SIGHUP."""
    prepare()
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # as after `>&-`
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - as long as the process
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: a path may have any character
    try:
        with _stoppable():
            status = command(argument) or 0
            sys.stdout.flush()
            return status
    except UserError as error:
        return _fail(str(error))
    except OSError as error:
        if error.errno not in _MACHINE:
            raise
        if isinstance(error, BrokenPipeError):
            discard(sys.stdout)
        place = f" ({error.filename})" if error.filename else ""
        return _fail(_MACHINE[error.errno].format(place=place))
    except MemoryError:
        return _fail(_MEMORY)
    except Interrupted as stop:
        if not started_rank():
            _complain(stop)
    except KeyboardInterrupt:
        _complain("Stopped.")
    return STOPPED


@contextlib.contextmanager
def _stoppable():
    """SIGTERM and SIGHUP end a command as Ctrl-C does. The members of a group of processes are left to those
    who started them."""
    came = []

    def interrupt(number, frame):
        came.append(number)
        raise KeyboardInterrupt

    try:
        with contextlib.nullcontext() if launched() else signals_go_to(interrupt):
            yield
    except Exception as error:
        # Where a backward of ours was interrupted, Paddle makes another error of it.
        if came:
            raise KeyboardInterrupt from error
        raise


def _complain(text):
    try:
        print(text, file=sys.stderr)
    except OSError:
        discard(sys.stderr)


def _fail(message):
    if started_rank():
        # Rank 0 mostly fails of the same cause: let it speak, and be ended with the others.
        time.sleep(5)
    _complain("error: " + message)
    return FAILED
