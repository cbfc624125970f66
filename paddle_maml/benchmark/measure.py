"""Measuring contestants in turns, and what follows from the times: medians, spread, ratios."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import statistics
import time
from typing import Callable

import paddle

from ..data.episodes import EpisodeBuilder, meta_batch
from ..data.synthetic import draw_synthetic
from ..engine.settings import Settings
from ..errors import UserError
from ..networks.conv4 import MAML
from .contestants import OURS, Contestant, Problem
from .worker import Team

# Relative, for the median task. Rounding alone gives 1e-6 to 2e-5 after five inner steps, another computation
# differs in the first digits.
LOSS_TOLERANCE = 1e-4
# Warm-up and turns of a heat, which only chooses between arrangements, and its part of the tasks: some
# arrangements are slow.
HEAT, HEAT_SHARE = {"warmup": 0, "repeat": 1}, 4


def make_problem(settings: Settings) -> tuple[Problem, float]:
    """The problem of some `Settings`: fresh weights, and episodes of drawn characters, which need no
    download.

    Returns:
        (problem, seconds): `Problem`, and the time that building its episodes took.
    """
    paddle.seed(settings.seed)
    net = MAML(n_way=settings.n_way, width=settings.width, image_size=settings.image_size)
    images = draw_synthetic(alphabets=-(-settings.n_way // 20), image_size=settings.image_size)
    builder = EpisodeBuilder(images, settings.n_way, settings.k_shot, settings.k_query, seed=settings.seed)
    began = time.perf_counter()
    batch = meta_batch(builder, range(settings.meta_batch))
    return Problem(settings, [p.numpy() for p in net.parameters()], batch), time.perf_counter() - began


class LossCheck:
    """Whether all contestants on a problem compute the same: the losses of each are compared with those of
    the first.

    Task by task and by their median, not by the mean: where a unit lies within rounding of ReLU's or
        max-pool's kink, its gradient is
    on or off by chance, and the loss of that task differs by a per cent between any two implementations in
    single precision.
    """

    def __init__(self):
        self._first = None

    def __call__(self, contestant: Contestant, losses: list[float]) -> None:
        """Refuse losses (T,) that are not those of the first contestant: raises UserError."""
        if self._first is None:
            self._first = contestant, losses
        first, expected = self._first
        if not all(math.isfinite(loss) for loss in losses):
            raise UserError(f"The adaptation of {contestant} diverges: lower --inner-lr.")
        apart = [abs(a - b) > LOSS_TOLERANCE * abs(b) for a, b in zip(losses, expected)]
        if 2 * sum(apart) > len(apart):
            raise UserError(
                f"The losses of {contestant} and of {first} differ in {sum(apart)} of {len(apart)} tasks, "
                "so their times cannot be compared; lower --inner-lr if the adaptation diverges, and else "
                "report this."
            )


def measure(
    contestants: list[Contestant], problem: Problem, device: str, check: LossCheck, warmup: int, repeat: int
) -> list[dict]:
    """Meta-iterations of all contestants, in turns of `worker.TURN`.

    Args:
        contestants: list of `Contestant`.
        problem: `Problem`.
        device: "cpu" or "gpu:N".
        check: `LossCheck` of this problem.
        warmup, repeat: rounds that do not count, and rounds that do.

    Returns:
        A row for each contestant, a dict of plain values: the contestant's fields; seconds, a list of
            `repeat`; median_s, min_s,
        max_s, meta_iterations_per_s, episodes_per_s, peak_memory_bytes (above what the imports take) and
        loss.

    Raises:
        UserError: a contestant's process failed, or the check did.
    """
    seconds, losses = [[] for _ in contestants], [None] * len(contestants)
    with contextlib.ExitStack() as stack:
        teams = [stack.enter_context(Team(contestant, problem, device)) for contestant in contestants]
        for turn in range(warmup + repeat):
            for number, team in enumerate(teams):
                spent, losses[number] = team.run()
                if turn >= warmup:
                    seconds[number].append(spent)
        peaks = [team.memory() for team in teams]
        for contestant, team in zip(contestants, teams):
            check(contestant, team.losses())
    return [_row(*parts, tasks=len(problem.batch[0])) for parts in zip(contestants, seconds, losses, peaks)]


def _row(contestant, seconds, loss, peak, tasks):
    median = statistics.median(seconds)
    return {
        **vars(contestant),
        "seconds": seconds,
        "median_s": median,
        "min_s": min(seconds),
        "max_s": max(seconds),
        "meta_iterations_per_s": 1 / median,
        "episodes_per_s": tasks / median,
        "peak_memory_bytes": peak,
        "loss": loss,
    }


def fastest(
    contestants: list[Contestant], problem: Problem, device: str, announce: Callable[[str], None]
) -> tuple[Contestant, list[dict]]:
    """The fastest of some contestants, measured one after the other on a quarter of the tasks.

    Args:
        announce: takes a line about each.

    Returns:
        (contestant, rows): the rows of the heats are empty where there was only one candidate.
    """
    if len(contestants) == 1:
        return contestants[0], []
    tasks = max(len(problem.batch[0]) // HEAT_SHARE, *(c.processes for c in contestants))
    problem = dataclasses.replace(problem, batch=tuple(array[:tasks] for array in problem.batch))
    rows, check = [], LossCheck()
    for contestant in contestants:
        rows += measure([contestant], problem, device, check, **HEAT)
        announce(f"heat: {contestant}: {rows[-1]['min_s']:.3f} s")
    best = min(range(len(rows)), key=lambda number: rows[number]["min_s"])
    return contestants[best], rows


def ratios(rows: list[dict]) -> list[dict]:
    """How the rows of a final compare: this library with each opponent of the same order, and its order 2
    with its order 1.

    Returns:
        List of dict: of and to, each [side, order]; ratio, of the medians; low and high, the least and
        greatest of the rounds.
    """
    ours = {row["order"]: row for row in rows if row["side"] == OURS}
    pairs = [(row, ours[row["order"]]) for row in rows if row["side"] != OURS]
    if len(ours) == 2:
        pairs.append((ours[2], ours[1]))
    return [_ratio(above, below) for above, below in pairs]


def _ratio(above, below):
    rounds = [a / b for a, b in zip(above["seconds"], below["seconds"])]
    return {
        "of": [above["side"], above["order"]],
        "to": [below["side"], below["order"]],
        "ratio": above["median_s"] / below["median_s"],
        "low": min(rounds),
        "high": max(rounds),
    }
