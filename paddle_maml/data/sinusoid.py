"""Sinusoids: the regression tasks of Finn et al. 2017, section 5.1.

The rule, complete enough to rebuild a task to the last bit in any language; words and uniform are those of
draws.py, and every operation is rounded to float64 where nothing else is said:

1. The words of task i are those of the key (seed, i).
2. amplitude = uniform(0.1, 5), then phase = uniform(0, pi), pi the float64 next to it, then for each support
   point in order and for each query point in order x = uniform(-5, 5), rounded to float32.
3. y = amplitude * sine(x - phase), rounded to float32, as in the code of the paper.
4. sine(t): n = t * (1 / pi) rounded to the nearest whole number, halves to the even one; r = (t - n * HIGH) -
   n * LOW, where HIGH is pi to 33 bits and LOW the rest of it; s = r * r. Horner's rule for the series
   p = 1 + s * (c_1 + s * (c_2 + ... + s * c_10)), innermost first, with c_k = (-1)**k / (2 * k + 1)!, gives
   sine(t) = r * p, with the other sign where n is odd.

So nothing depends on a library's sine, which differs by machine. For the t that occur, -9 to 5, the error is
below 1e-15.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from .draws import SeededTasks

AMPLITUDES, PHASES, INPUTS = (0.1, 5.0), (0.0, math.pi), (-5.0, 5.0)

_HIGH = float.fromhex("0x1.921fb544p+1")
_LOW = float.fromhex("0x1.0b4611a626331p-33")
_SERIES = [(-1) ** k / math.factorial(2 * k + 1) for k in range(11)]


class SinusoidBuilder(SeededTasks):
    """Task i of a seed: points of y = amplitude * sin(x - phase), amplitude uniform in 0.1 .. 5, phase in
    0 .. pi, x in -5 .. 5 (the rule stands above).

    The support points come first in a task's draws: with the same seed and index, those of fewer shots are
    the first ones of those of more.

    Args:
        k_shot: support points.
        k_query: query points.
        seed: 0 .. 2**64 - 1.
        length: as of `EpisodeBuilder`.

    Raises:
        UserError: a number out of its range.
    """

    def __init__(self, k_shot: int, k_query: int, seed: int = 0, length: int | None = None):
        super().__init__(seed, length, k_shot=k_shot, k_query=k_query)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Builds a task.

        Args:
            index: 0 .. length - 1.

        Returns:
            x_spt, y_spt float32 (k_shot, 1), and x_qry, y_qry float32 (k_query, 1).

        Raises:
            IndexError: an index below 0 or from the length on.
        """
        draws = self.draws(index)
        amplitude, phase = self._amplitude_and_phase(draws)
        x = draws.uniform(*INPUTS, (self.k_shot + self.k_query, 1)).astype(np.float32)
        y = sinusoid(x, amplitude, phase).astype(np.float32)
        return x[: self.k_shot], y[: self.k_shot], x[self.k_shot :], y[self.k_shot :]

    def draw(self, index: int) -> tuple[float, float]:
        """Amplitude and phase of a task. Arguments and errors as for an item."""
        return self._amplitude_and_phase(self.draws(index))

    @staticmethod
    def _amplitude_and_phase(draws):
        return float(draws.uniform(*AMPLITUDES)), float(draws.uniform(*PHASES))


# Training, validation and test draw from seeds of their own, so that they share no task.
_SEEDS = {"train": 0, "val": 2**62, "test": 2**63}


@dataclasses.dataclass(frozen=True)
class Sinusoids:
    """The sinusoids of a part of the split, in the place of an `ImageSet`.

    Args:
        part: "train", "val" or "test".
    """

    part: str
    name, listing_sha256 = "sinusoid", ""
    classes = ()
    input_shape = (1,)

    def episodes(self, k_shot: int, k_query: int, seed: int) -> SinusoidBuilder:
        """The tasks of this part for a seed of the run."""
        return SinusoidBuilder(k_shot, k_query, (seed + _SEEDS[self.part]) % 2**64)


def sinusoid(x: np.ndarray, amplitude: float, phase: float) -> np.ndarray:
    """The curve of a task, amplitude * sin(x - phase), float64 of the shape of x; x is -5 .. 5."""
    angle = np.asarray(x, np.float64) - phase
    turns = np.rint(angle * (1 / math.pi))
    rest = (angle - turns * _HIGH) - turns * _LOW
    square, series = rest * rest, np.full_like(rest, _SERIES[-1])
    for coefficient in _SERIES[-2::-1]:
        series = coefficient + square * series
    return amplitude * (rest * series * (1 - 2 * (turns % 2)))
