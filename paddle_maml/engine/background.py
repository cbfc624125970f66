"""What goes on beside the loop: building meta-batches ahead."""

from __future__ import annotations

import collections
import concurrent.futures
from typing import Callable


class Ahead:
    """Meta-batches built in a thread while the previous ones are computed.

    Args:
        build: function from a meta-iteration to its meta-batch.
        first, last: the meta-iterations, `last` excluded.
        depth: how many may wait.
    """

    def __init__(self, build: Callable[[int], tuple], first: int, last: int, depth: int = 2):
        self._build, self._rest = build, iter(range(first, last))
        self._thread = concurrent.futures.ThreadPoolExecutor(1)
        self._waiting = collections.deque()
        for _ in range(depth):
            self._order()

    def next(self) -> tuple:
        """The next meta-batch; raises what building it raised."""
        self._order()
        return self._waiting.popleft().result()

    def close(self) -> None:
        """Build no more."""
        self._thread.shutdown(cancel_futures=True)

    def _order(self):
        iteration = next(self._rest, None)
        if iteration is not None:
            self._waiting.append(self._thread.submit(self._build, iteration))
