"""Who takes part in a benchmark, in which arrangement of the cores, and the problem that all of them solve.

Neither Paddle nor PyTorch is imported here, because the processes of both frameworks read this file.
"""

from __future__ import annotations

import dataclasses
import itertools

from ..engine.processes import share
from ..engine.settings import Settings

OURS, COMPETITION, PYTORCH = "ours", "competition", "pytorch"
OPPONENTS = (COMPETITION, PYTORCH)
VARIANTS = {OURS: ("side by side",), COMPETITION: ("loop",), PYTORCH: ("loop", "channels_last", "vmap")}
# The competition's meta-gradient is first order; its operators have no second derivative.
ORDERS = {OURS: (1, 2), COMPETITION: (1,), PYTORCH: (1, 2)}


@dataclasses.dataclass(frozen=True)
class Contestant:
    """One way to compute a meta-iteration: the code, processes with their threads, and whether the memory
    allocator is tuned as `device.prepare` does it for this library's users."""

    side: str
    variant: str
    order: int
    processes: int = 1
    threads: int = 1
    tuned_allocator: bool = True

    def __str__(self) -> str:
        return f"{self.side} ({self.variant}), order {self.order}, {self.processes} x {self.threads}"


@dataclasses.dataclass(frozen=True)
class Problem:
    """A meta-iteration's work, as plain arrays.

    Args:
        settings: `Settings`.
        weights: initial parameters in the order of `MAML.parameters()`.
        batch: x_spt (T, N, C, H, W), y_spt (T, N), x_qry, y_qry.
        share: these tasks' part of the whole meta-batch, a fraction.
    """

    settings: Settings
    weights: list
    batch: tuple
    share: float = 1.0

    def part(self, rank: int, processes: int) -> Problem:
        """The tasks of one of several processes."""
        batch = tuple(share(array, rank, processes) for array in self.batch)
        return dataclasses.replace(self, batch=batch, share=len(batch[0]) / len(self.batch[0]))


def candidates(
    side: str, order: int, processes: int, threads: int, tune_opponents: bool = False
) -> list[Contestant]:
    """All that may be a side's fastest contestant on processes x threads cores.

    This library runs as it is told. Opponents also try one process with all the threads; their allocator is
    tuned on request only, because their users do not get that.
    """
    arrangements = {(processes, threads)}
    if side != OURS:
        arrangements.add((1, processes * threads))
    tuned = side == OURS or tune_opponents
    return [
        Contestant(side, variant, order, *arrangement, tuned)
        for variant, arrangement in itertools.product(VARIANTS[side], sorted(arrangements))
    ]
