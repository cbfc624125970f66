"""Who takes part in a benchmark, in which arrangement of the cores, and the problem that all of them solve.

No framework is imported here, because the processes of all of them read this file.
"""

from __future__ import annotations

import dataclasses
import itertools

from ..engine.processes import share
from ..engine.settings import Settings


@dataclasses.dataclass(frozen=True)
class Side:
    """A code that takes part.

    Args:
        module: of this package, the file with its `make`; only the side's own processes import it.
        variants: the ways that it has to compute a meta-iteration.
        orders: of the meta-gradient that it has.
        packages: what must be installed for it.
        install: how to install them, as a command.
    """

    module: str
    variants: tuple = ("loop",)
    orders: tuple = (1, 2)
    packages: tuple = ()
    install: str = ""


OURS, COMPETITION, PYTORCH = "ours", "competition", "pytorch"
LEARN2LEARN, HIGHER, TORCHOPT, JAX, PADDLEFSL = "learn2learn", "higher", "torchopt", "jax", "paddlefsl"
SIDES = {
    OURS: Side("paddle_sides", ("side by side",)),
    # First order, as Paddle's own operators have no second derivative.
    COMPETITION: Side("paddle_sides", orders=(1,)),
    PYTORCH: Side(
        "pytorch_sides", ("loop", "channels_last", "vmap"), packages=("torch",), install="pip install torch"
    ),
    LEARN2LEARN: Side(
        "torch_libraries",
        packages=("torch", "learn2learn"),
        install="pip install learn2learn (from Python 3.11 on as docs/speed.md says)",
    ),
    HIGHER: Side("torch_libraries", packages=("torch", "higher"), install="pip install higher"),
    TORCHOPT: Side("torch_libraries", packages=("torch", "torchopt"), install="pip install torchopt"),
    JAX: Side("jax_side", ("vmap", "loop"), packages=("jax",), install="pip install jax"),
    # First order, as the competition.
    PADDLEFSL: Side(
        "paddlefsl_side",
        orders=(1,),
        packages=("paddlefsl",),
        install="pip install requests tqdm, then pip install --no-deps paddlefsl==1.0.0",
    ),
}
OPPONENTS = tuple(side for side in SIDES if side != OURS)


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
        for variant, arrangement in itertools.product(SIDES[side].variants, sorted(arrangements))
    ]
