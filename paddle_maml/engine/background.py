"""What goes on beside the loop: building meta-batches ahead."""

from __future__ import annotations

import queue
import threading


class Ahead:
    """Meta-batches built in a thread while the previous ones are computed.

    Args:
        build: function from a meta-iteration to its meta-batch.
        first, last: the meta-iterations, `last` excluded.
        depth: how many finished ones may wait.
    """

    def __init__(self, build, first, last, depth=2):
        self._queue, self._closed = queue.Queue(depth), threading.Event()
        self._thread = threading.Thread(target=self._work, args=(build, first, last), daemon=True)
        self._thread.start()

    def next(self):
        """The next meta-batch; raises what building it raised."""
        item = self._queue.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self):
        self._closed.set()
        self._thread.join()

    def _work(self, build, first, last):
        try:
            for iteration in range(first, last):
                if not self._put(build(iteration)):
                    return
        except BaseException as error:
            self._put(error)

    def _put(self, item):
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False
