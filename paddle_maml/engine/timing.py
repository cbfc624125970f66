"""How long a learner takes for a new task: until it has adapted, and for each query image."""

from __future__ import annotations

import statistics
import time

from ..data.episodes import EpisodeBuilder
from ..learners.base import Learner

WARM_UP, REPEAT = 3, 21  # episodes


def time_tasks(
    learner: Learner, builder: EpisodeBuilder, steps: int | None = None, repeat: int = REPEAT
) -> dict:
    """Measure `predict` on single tasks in this process, with one query image and with all of them.

    Args:
        learner: with its weights.
        builder: an `EpisodeBuilder` with at least two query images.
        steps: inner steps, where the learner has them.
        repeat: tasks that count.

    Returns:
        A dict of plain values: adapt_s, seconds from the support set of a task until it can answer, and
        query_s, seconds that a query image takes beside others, medians over the tasks; and query_images and
        repeat. Of a query set of M images that takes t(M), query_s is (t(M) - t(1)) / (M - 1), and adapt_s is
        t(1) - query_s.
    """
    options = {} if steps is None else {"steps": steps}

    def seconds(*task):
        began = time.perf_counter()
        learner.predict(*task, **options)  # an array: nothing is left to wait for on a GPU
        return time.perf_counter() - began

    adapting, answering = [], []
    for index in range(WARM_UP + repeat):
        x_spt, y_spt, x_qry, _ = builder[index]
        one, all_of_them = seconds(x_spt, y_spt, x_qry[:1]), seconds(x_spt, y_spt, x_qry)
        answering.append((all_of_them - one) / (len(x_qry) - 1))
        adapting.append(one)
    query = statistics.median(answering[WARM_UP:])
    return {
        "adapt_s": statistics.median(adapting[WARM_UP:]) - query,
        "query_s": query,
        "query_images": len(x_qry),
        "repeat": repeat,
    }
