"""SIGINT, SIGTERM and SIGHUP: who gets them, when they wait, and the wish to stop that they are."""

from __future__ import annotations

import contextlib
import signal
import threading
from typing import Callable, Iterator

# SIGHUP is a terminal that was closed; Windows has none.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))


@contextlib.contextmanager
def signals_go_to(handler: Callable | signal.Handlers) -> Iterator[None]:
    """The signals go to a handler until this is left; one that is ignored, as SIGINT after `&` in a script or
    SIGHUP after nohup, still is. Outside the main thread, where Python has no handlers, nothing changes."""
    previous = {}
    if threading.current_thread() is threading.main_thread():
        previous = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    for number, before in previous.items():
        if before is not signal.SIG_IGN:
            signal.signal(number, handler)
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


@contextlib.contextmanager
def signals_wait() -> Iterator[None]:
    """The signals are delivered when this is left, where the system can hold them back."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Interrupted(Exception):
    """The run was asked to stop, saved its state and stopped; the message says how to continue."""


class StopRequest:
    """Turns the first signal into a flag; a second one ends the process as usual."""

    def __init__(self):
        self.requested, self._held = False, contextlib.ExitStack()

    def __enter__(self) -> StopRequest:
        self._held.enter_context(signals_go_to(self._handle))
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def _handle(self, number, frame):
        self.requested = True
        self._held.enter_context(signals_go_to(signal.SIG_DFL))
