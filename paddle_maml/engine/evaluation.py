"""Testing: the mean score over episodes with its 95 % interval, after every inner step."""

from __future__ import annotations

import contextlib
import math
from typing import Callable, Iterator

import numpy as np

from ..data.episodes import EpisodeBuilder, meta_batch
from ..errors import UserError
from ..learners.base import Learner
from .parallel import ALONE, Ranks

NOTE = (
    "transductive: batch norm uses the statistics of each episode's whole query set, as in the published "
    "protocols"
)


# Whose statistics batch norm uses, see `Learner.predict`.
BATCH_STATISTICS = {
    "query": "the whole query set (published protocol)",
    "one": "the support set and one query image",
    "support": "the support set alone",
    "population": "training images",
}


class Diverged(UserError):
    """The adaptation to an episode went beyond all bounds."""


def evaluate(
    learner: Learner,
    builder: EpisodeBuilder,
    episodes: int,
    steps: int | None = None,
    batch: int = 32,
    between: Callable[[], None] | None = None,
    ranks: Ranks = ALONE,
    every_step: bool = True,
) -> dict:
    """Adapt to episodes 0 .. episodes - 1 and score their query sets. No weight changes.

    Args:
        learner: a `Learner`.
        builder: an `EpisodeBuilder` of the classes to test on.
        episodes: number of episodes, at least 2.
        steps: inner steps; the learner's by default.
        batch: episodes built and handed over at a time; it changes memory only.
        between: called without arguments after each batch; what it raises ends the evaluation.
        ranks: the group of processes that the episodes of a batch are divided over; all get the same result.
        every_step: or score the last step alone, see `MetaLearner.finetune`.
    Returns:
        dict: the score and its interval after the last inner step, and the loss; `..._per_step`, lists of
            steps + 1 of each, from no step on, or of the last alone; episodes; of a classification a note on
            batch norm. The score's key is "accuracy", a fraction, or "score" with its name in "score_name".
            Intervals are half-widths, 1.96 standard errors of the mean over episodes.
    Raises:
        Diverged: the loss of an episode is not a finite number.
    """
    scores, losses = score_episodes(learner, builder, episodes, steps, batch, between, ranks, every_step)
    if not np.isfinite(losses).all():
        raise Diverged("The query loss is not a finite number after the inner steps: lower inner_lr.")
    (means, intervals), name = mean_and_interval(scores), learner.objective.score_name
    key = "accuracy" if name == "accuracy" else "score"
    return {
        key: float(means[-1]),
        "interval": float(intervals[-1]),
        "loss": float(losses.mean(axis=0)[-1]),
        f"{key}_per_step": means.tolist(),
        "interval_per_step": intervals.tolist(),
        "loss_per_step": losses.mean(axis=0).tolist(),
        "episodes": episodes,
        **({} if key == "accuracy" else {"score_name": name}),
        **_said_of_statistics(learner),
    }


def _said_of_statistics(learner):
    if learner.statistics is None:
        return {"note": NOTE} if learner.transductive else {}
    if learner.statistics == "query" and not learner.transductive:  # a network without batch norm
        return {}
    note = f"batch norm uses the statistics of {BATCH_STATISTICS[learner.statistics]}"
    return {"statistics": learner.statistics, "note": note}


def choose_statistics(learner: Learner, statistics: str) -> None:
    """Have a learner answer with batch statistics of a choice; UserError if it has no such choice."""
    if statistics not in learner.STATISTICS:
        raise UserError(
            f"statistics is {statistics!r}, but must be one of {', '.join(learner.STATISTICS)} for these "
            "weights."
        )
    learner.statistics = statistics


def score_episodes(
    learner: Learner,
    builder: EpisodeBuilder,
    episodes: int,
    steps: int | None = None,
    batch: int = 32,
    between: Callable[[], None] | None = None,
    ranks: Ranks = ALONE,
    every_step: bool = True,
) -> np.ndarray:
    """(scores, losses) of each of the episodes, arrays (episodes, steps + 1) whose column k is after k
    inner steps; arguments as for `evaluate`. Losses that are not finite are left for the caller to see."""
    own = []
    for start in range(0, episodes, batch):
        indices = ranks.share(range(start, min(start + batch, episodes)))
        if indices:
            with without_dropout(learner):
                scores = learner.finetune(*meta_batch(builder, indices), steps=steps, every_step=every_step)
            own.append((slice(indices[0], indices[-1] + 1), scores))
        if between:
            between()
    # A rank that had no episodes learns from the others how many columns there are.
    columns = ranks.largest(own[0][1][0].shape[1] if own else 0)
    whole = np.zeros((2, episodes, columns))
    for place, scores in own:
        whole[:, place] = scores
    return ranks.sum_array(whole)


@contextlib.contextmanager
def without_dropout(learner: Learner) -> Iterator[None]:
    """A learner with the dropout layers of its network switched off; batch norm goes on as it is."""
    dropping = [part for part in learner.sublayers() if "Dropout" in type(part).__name__ and part.training]
    for part in dropping:
        part.training = False
    try:
        yield
    finally:
        for part in dropping:
            part.training = True


def mean_and_interval(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over episodes, the first axis, and half the width of its 95 % interval: 1.96 standard errors."""
    return scores.mean(axis=0), 1.96 * scores.std(axis=0, ddof=1) / math.sqrt(len(scores))
