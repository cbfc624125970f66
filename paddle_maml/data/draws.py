"""Random draws that are the same on every machine: numbers from the words of a counter-based generator.

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
"""

from __future__ import annotations

import operator

import numpy as np

from ..errors import UserError


def check_seed(seed):
    """Raises UserError for a seed that is not in 0 .. 2**64 - 1."""
    if not 0 <= operator.index(seed) < 2**64:
        raise UserError(f"seed is {seed}, but must be between 0 and 2**64 - 1.")


def philox_words(seed, index):
    """The endless stream of 64-bit words of a (seed, index) pair (rule 1)."""
    philox = np.random.Philox(key=np.array([seed, index], dtype=np.uint64))
    while True:
        yield from philox.random_raw(128).tolist()


class Draws:
    """Draws from an iterator of 64-bit words (rules 2 and 3)."""

    def __init__(self, words):
        self._words = words

    def below(self, n):
        """A number in 0 .. n - 1, every one equally likely."""
        word = next(self._words)
        limit = 2**64 - 2**64 % n
        while word >= limit:
            word = next(self._words)
        return word % n

    def choose(self, n, k):
        """k different numbers of 0 .. n - 1, in random order (partial Fisher-Yates shuffle)."""
        pool = list(range(n))
        for i in range(k):
            j = i + self.below(n - i)
            pool[i], pool[j] = pool[j], pool[i]
        return pool[:k]
