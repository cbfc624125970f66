"""Starting and ending the processes of a run on one machine, and how tasks are divided over them.

Nothing here imports Paddle or NumPy before it must: both start threads, and a signal that is to wait must
wait in all of them (signals.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import multiprocessing.connection
import multiprocessing.resource_tracker
import os
import signal
import sys
import time
import traceback
import warnings
from typing import Callable, Sequence

from ..errors import UserError
from .device import import_paddle
from .signals import STOP_SIGNALS, signals_go_to, signals_wait

# Of processes that share out the cores of a CPU: one thread each, and large pages, which make fresh memory
# cheaper.
CPU_ENVIRONMENT = {
    "PADDLE_MAML_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}


def launched() -> bool:
    """Whether Paddle's launcher or `run_processes` started this process."""
    return "PADDLE_TRAINER_ID" in os.environ


def started_rank() -> int:
    """The rank that this process was started as, known before it has joined the others; 0 for what
    `import_paddle` refuses."""
    rank = os.environ.get("PADDLE_TRAINER_ID", "0")
    return int(rank) if rank.isdecimal() else 0


def share(numbers: Sequence, rank: int, size: int) -> Sequence:
    """The part of a sequence that one of `size` processes takes: contiguous, and in lengths that differ by
    one at most."""
    start, end = (len(numbers) * number // size for number in (rank, rank + 1))
    return numbers[start:end]


def run_processes(function: Callable[..., int], arguments: tuple, count: int, device: str) -> int:
    """Run function(*arguments), which returns an exit status, in `count` processes of one group on this
    machine.

    SIGINT, SIGTERM and SIGHUP are passed on to all of them as SIGTERM, and a second one kills them; when this
    process dies, they die; when one of them fails, the others are stopped.

    Args:
        function: an importable function; its arguments can be pickled.
        device: "cpu", for gloo and one thread a process, or "gpu:N", for NCCL and one of the visible cards a
            process.
    Returns:
        The exit status: 0, or that of the first process that failed.
    Raises:
        UserError: a process was killed.
        KeyboardInterrupt: a signal came before the processes could take it.
    """
    paddle = import_paddle()
    # The processes import Paddle before any line of ours runs in them, so the environment must silence it,
    # and load zlib (__init__.py).
    environment = {
        "PYTHONWARNINGS": "ignore:No ccache found,ignore:You are using GPU version Paddle,ignore:Your model "
        "will be trained"
    }
    if sys.platform.startswith("linux") and paddle.version.major == "2":
        environment["LD_PRELOAD"] = "libz.so.1"
    if device == "cpu":
        environment.update(CPU_ENVIRONMENT)
    added = {name: value for name, value in environment.items() if name not in os.environ}
    warnings.filterwarnings("ignore", message="Your model will be trained under CPUONLY mode")
    logging.getLogger("root").setLevel(logging.WARNING)  # Paddle's: "find free ports"

    processes, signals = [], []

    def pass_on(number, frame):
        # The second time by force: native code may not listen.
        _signal(processes, signal.SIGKILL if signals else signal.SIGTERM)
        signals.append(number)

    with signals_go_to(pass_on):
        try:
            os.environ.update(added)
            # It lets signals through again, so before they are made to wait.
            multiprocessing.resource_tracker.ensure_running()
            with signals_wait():
                # The processes inherit it, and import Paddle in peace.
                group = paddle.distributed.spawn(
                    _member,
                    args=(function, arguments, os.getpid()),
                    nprocs=count,
                    join=False,
                    backend="gloo" if device == "cpu" else "nccl",
                )
            processes += group.processes
            for name in added:
                del os.environ[name]
            if signals:
                _signal(processes, signal.SIGTERM)
            failed = _first_failure(processes)
        finally:
            _end(processes, told=bool(signals))
    if failed is None:
        return 0
    if failed < 0 and signals:
        raise KeyboardInterrupt
    if failed < 0:
        name = signal.Signals(-failed).name
        raise UserError(
            f"A process of the run was killed ({name}): continue from the last checkpoint with --resume, or "
            "start again."
        )
    return failed


def _signal(processes, number):
    for process in processes:
        if process.is_alive():
            os.kill(process.pid, number)


def _first_failure(processes):
    """Wait for the processes; the exit status of the first that ends with another than 0, or None."""
    waiting = {process.sentinel: process for process in processes}
    while waiting:
        for sentinel in multiprocessing.connection.wait(list(waiting), timeout=1):
            process = waiting.pop(sentinel)
            process.join()
            if process.exitcode:
                return process.exitcode
    return None


def _end(processes, told, patience=10.0):
    """End what is still alive: politely, and after some seconds by force, because native code may not listen.
    Processes that were told to
    stop already are given the time to do so: a second signal would end them in the middle of it."""
    if not told:
        _signal(processes, signal.SIGTERM)
    deadline = time.monotonic() + patience
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


def _member(function, arguments, parent):
    """What one process of `run_processes` runs."""
    if hasattr(os, "setpgrp"):
        # Ctrl-C at the terminal would reach this process twice, directly and passed on by the parent; the
        # second one kills.
        os.setpgrp()
    if sys.platform.startswith("linux"):
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
    import_paddle()
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    try:
        status = function(*arguments)
    except Exception:
        # Paddle would keep it for the parent's exception, which is not raised here.
        traceback.print_exc()
        status = 1
    if status:
        # At once: Paddle's end may wait for the other processes.
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, AttributeError):
                stream.flush()
        os._exit(status)
