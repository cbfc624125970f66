"""A contestant's processes: `Team` starts them and gives the commands, `work` is what each of them does.

A contestant of several processes divides the tasks of the meta-batch among them and adds the gradients by its
own framework's gloo backend, one message for all parameters.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import time
from typing import Callable

from ..engine.device import prepare
from ..engine.processes import CPU_ENVIRONMENT
from ..errors import UserError
from .contestants import SIDES, Contestant, Problem

RUN, MEMORY, LOSSES = "run", "memory", "losses"
# Meta-iterations of a turn, back to back: the first one after another contestant's turn finds the caches full
# of that one's data, which in training happens once.
TURN = 3


class Team:
    """The processes of one contestant; a context manager that ends them.

    Args:
        contestant: `Contestant`.
        problem: the whole `Problem`; each process gets its share.
        device: "cpu" or "gpu:N", as Paddle names it.

    Raises:
        UserError: a process ended or refused to start.
    """

    def __init__(self, contestant: Contestant, problem: Problem, device: str):
        self.contestant = contestant
        self._processes, self._connections = [], []
        context, port = multiprocessing.get_context("spawn"), _free_port()
        try:
            for rank in range(contestant.processes):
                here, there = context.Pipe()
                process = context.Process(target=work, args=(there, contestant, device), daemon=True)
                with _environment(contestant, rank, port):
                    process.start()
                there.close()
                self._processes.append(process)
                self._connections.append(here)
            for rank, connection in enumerate(self._connections):
                self._send(connection, problem.part(rank, contestant.processes))
            self._answers()
        except BaseException:
            self.close()
            raise

    def run(self) -> tuple[float, float]:
        """One turn, each meta-iteration from the initial weights: (their mean seconds in the slowest process,
        loss)."""
        seconds, losses = zip(*self._ask(RUN))
        return max(seconds), losses[0]

    def memory(self) -> int | None:
        """Bytes that all processes took at their peak above what the imports take; None where the system does
        not tell."""
        peaks = self._ask(MEMORY)
        return None if None in peaks else sum(peaks)

    def losses(self) -> list[float]:
        """The query loss of each task, (T,)."""
        return [loss for part in self._ask(LOSSES) for loss in part]

    def close(self) -> None:
        for process in reversed(self._processes):  # JAX's others would report that the first is gone
            process.kill()  # it has nothing to save, and Paddle answers SIGTERM with a report
            process.join()
        for connection in self._connections:
            connection.close()

    def __enter__(self) -> Team:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, command):
        for connection in self._connections:
            self._send(connection, command)
        return self._answers()

    @staticmethod
    def _send(connection, message):
        with contextlib.suppress(BrokenPipeError):  # a process that has ended: its answer says so
            connection.send(message)

    def _answers(self):
        answers = [None] * len(self._connections)
        waiting = {connection: rank for rank, connection in enumerate(self._connections)}
        while waiting:
            # Whoever answers first: where one process died the others wait for it forever.
            for connection in multiprocessing.connection.wait(list(waiting)):
                rank = waiting.pop(connection)
                try:
                    answers[rank] = connection.recv()
                except (EOFError, ConnectionResetError):
                    self._processes[rank].join()
                    raise UserError(
                        f"A process of {self.contestant} ended with status "
                        f"{self._processes[rank].exitcode}; if the memory did not suffice, lower --tasks."
                    ) from None
                if isinstance(answers[rank], str):
                    raise UserError(f"{self.contestant}: {answers[rank]}")
        return answers


@contextlib.contextmanager
def _environment(contestant, rank, port):
    """The environment that a process is to be started in: most of it is read before any line of ours runs."""
    variables = dict.fromkeys(
        # NPROC is JAX's.
        ("PADDLE_MAML_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NPROC"),
        str(contestant.threads),
    )
    # Frameworks differ in when they round to TF32; here all compute in float32.
    variables["NVIDIA_TF32_OVERRIDE"] = "0"
    if contestant.processes > 1:
        endpoints = [f"127.0.0.1:{port + number}" for number in range(contestant.processes)]
        variables.update(
            PADDLE_TRAINER_ID=str(rank),
            PADDLE_TRAINERS_NUM=str(contestant.processes),
            PADDLE_MASTER=endpoints[0],
            PADDLE_CURRENT_ENDPOINT=endpoints[rank],
            PADDLE_TRAINER_ENDPOINTS=",".join(endpoints),
            PADDLE_DISTRI_BACKEND="gloo",
            RANK=str(rank),
            WORLD_SIZE=str(contestant.processes),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
        )
        if contestant.tuned_allocator:
            variables["GLIBC_TUNABLES"] = CPU_ENVIRONMENT["GLIBC_TUNABLES"]  # as run_processes does for users
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def work(connection: multiprocessing.connection.Connection, contestant: Contestant, device: str) -> None:
    """The life of a process: set up, import, then answer commands until the other end of the connection is
    closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's business
    if contestant.tuned_allocator:
        prepare()
    with contextlib.suppress(EOFError, BrokenPipeError):
        try:
            _serve(connection, contestant, device)
        except UserError as error:
            connection.send(str(error))


def _serve(connection, contestant, device):
    # Paddle warns of every OMP_NUM_THREADS but 1.
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stderr(nowhere):
        make = maker(contestant.side)
    imported = _resident_bytes("VmRSS")
    side = make(contestant, connection.recv(), device)
    connection.send(True)
    while True:
        command = connection.recv()
        if command == RUN:
            seconds = 0.0
            for _ in range(TURN):
                began = time.perf_counter()
                loss = side.meta_iteration()
                side.synchronize()
                seconds += time.perf_counter() - began
                side.reset()
            connection.send((seconds / TURN, loss))
        elif command == LOSSES:
            connection.send(side.losses())
        elif device != "cpu":
            connection.send(side.device_memory())
        else:
            peak = _resident_bytes("VmHWM")
            connection.send(None if peak is None else peak - imported)


def maker(side: str) -> Callable:
    """The `make` of a side's file, which takes a `Contestant`, its `Problem` and the device.

    Raises:
        UserError: a package that the side needs cannot be imported.
    """
    try:
        for package in SIDES[side].packages:
            importlib.import_module(package)
    except Exception as error:  # whatever an old library meets in new ones
        raise UserError(
            f"{package} is installed but cannot be imported ({error!r}); docs/speed.md says how to "
            "install it."
        ) from error
    return importlib.import_module("." + SIDES[side].module, __package__).make


def _resident_bytes(field):
    """VmRSS, the memory in use, or VmHWM, its peak, of this process; None where the system has no /proc.

    Not getrusage: its peak outlives exec, so that a child starts with its parent's.
    """
    with contextlib.suppress(OSError), open("/proc/self/status", encoding="ascii") as status:
        for line in status:
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    return None


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
