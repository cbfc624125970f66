"""Random draws that are the same on every machine, and tasks made of them.

The rule, complete enough to make the same draws in any language (n % m is the remainder, all integers are
exact):

1. Words. Philox4x64-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") with key (seed,
   index), both unsigned 64-bit. Block b = 1, 2, 3, ... is the cipher of the counter (b, 0, 0, 0); its four
   64-bit words are used in order 0, 1, 2, 3, and the blocks in order of b. This is
   `numpy.random.Philox(key=[seed, index]).random_raw`, whose stream NumPy guarantees, unlike that of
   `numpy.random.Generator`.
2. below(n). Take the next word r; while r >= 2**64 - 2**64 % n take the next one; the result is r % n. Always
   takes a word, also when n is 1.
3. choose(n, k). pool = [0, ..., n - 1]; for i = 0 .. k - 1: j = i + below(n - i), swap pool[i] and pool[j].
   The result is pool[0 .. k - 1] in this order.

uniform(low, high). The next word r gives low + (high - low) * u with u = (r >> 11) / 2**53, every operation
rounded to float64.
"""

from __future__ import annotations

import operator
from typing import Iterator

import numpy as np
import paddle

from ..errors import UserError

MAX_EPISODES = 2**31 - 1
# What a data set without a length says its length is. Paddle's shuffling loaders list so many numbers before
# the first batch, which takes a tenth of a second; with all of them it would take 48 GiB.
EPOCH = 2**20


def check_seed(seed: int) -> None:
    """Raises UserError for a seed that is not in 0 .. 2**64 - 1."""
    if not 0 <= operator.index(seed) < 2**64:
        raise UserError(f"seed is {seed}, but must be between 0 and 2**64 - 1.")


def philox_words(seed: int, index: int) -> Iterator[int]:
    """The endless stream of 64-bit words of a (seed, index) pair (rule 1)."""
    philox = np.random.Philox(key=np.array([seed, index], dtype=np.uint64))
    while True:
        yield from philox.random_raw(128).tolist()


class Draws:
    """Draws from an iterator of 64-bit words (rules 2 and 3)."""

    def __init__(self, words: Iterator[int]):
        self._words = words

    def below(self, n: int) -> int:
        """A number in 0 .. n - 1, every one equally likely."""
        word = next(self._words)
        limit = 2**64 - 2**64 % n
        while word >= limit:
            word = next(self._words)
        return word % n

    def choose(self, n: int, k: int) -> list[int]:
        """k different numbers of 0 .. n - 1, in random order (partial Fisher-Yates shuffle)."""
        pool = list(range(n))
        for i in range(k):
            j = i + self.below(n - i)
            pool[i], pool[j] = pool[j], pool[i]
        return pool[:k]

    def uniform(self, low: float, high: float, shape: int | tuple[int, ...] = ()) -> np.ndarray:
        """Uniform in [low, high), with the 53 upper bits of a word; float64 of a shape."""
        count = int(np.prod(shape))
        unit = np.array([next(self._words) >> 11 for _ in range(count)], dtype=np.float64) * 2.0**-53
        return low + (high - low) * unit.reshape(shape)


class SeededTasks(paddle.io.Dataset):
    """Tasks of which number i is a pure function of (seed, i): the same on every machine, in every process
    and order of access.

    Args:
        seed: 0 .. 2**64 - 1.
        length: number of tasks, `len()` of the data set. Without one every index below MAX_EPISODES is a
            task, and `len()` is EPOCH, which is what a `DataLoader` goes through.
        counts: what else must be at least 1, by name; each becomes an attribute.

    Raises:
        UserError: a number out of its range.
    """

    def __init__(self, seed: int, length: int | None, **counts: int):
        super().__init__()
        self._end, self._length = (MAX_EPISODES, EPOCH) if length is None else (length, length)
        for name, value in {**counts, "length": self._length}.items():
            if operator.index(value) < 1:
                raise UserError(f"{name} is {value}, but must be at least 1.")
        check_seed(seed)
        self.seed = int(seed)
        for name, value in counts.items():
            setattr(self, name, int(value))

    def __len__(self) -> int:
        return int(self._length)

    def draws(self, index: int) -> Draws:
        """The draws of a task. Raises IndexError for an index below 0 or from the end on."""
        index = operator.index(index)
        if not 0 <= index < self._end:
            raise IndexError(f"episode {index} of {self._end}")
        return Draws(philox_words(self.seed, index))
