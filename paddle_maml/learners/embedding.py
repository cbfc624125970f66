"""Learners whose network makes an embedding of an input, with the same parameters for every task."""

from __future__ import annotations

import numpy as np
import paddle
from paddle import nn

from .base import Learner


class EmbeddingLearner(Learner):
    """A learner that trains one set of parameters for all tasks, and answers by `_answer`.

    In training batch norm has the statistics of all inputs of an episode, or of `GROUP` episodes together. In
    testing it has by default those of the population, as Ioffe & Szegedy 2015 (algorithm 2) take them: the
    mean over what training has, which `settle` takes, so that an answer does not depend on the other query
    inputs. "query" are those of the episode.

    A network of the user's own that keeps batch norm to itself has no such statistics: "query" is then all
    there is.

    Args:
        net, loss, chunk, optimizer: as of `Learner`.
    """

    STATISTICS = ("population", "query")
    # Tasks that batch norm takes together in training.
    GROUP = 1

    def __init__(self, net: nn.Layer, loss="cross-entropy", chunk: int | None = None, optimizer=None):
        super().__init__(net, loss, chunk, optimizer)
        population = self.network.neutral_statistics()
        if population is None:
            self.STATISTICS = ("query",)
        for number, tensor in enumerate(population or []):
            self.register_buffer(f"population_{number}", tensor)

    def settle(self, *batch) -> None:
        """Take the population's statistics from the inputs of training tasks: the arrays of a batch with an
        axis of inputs, (T, N, ...), which come before their labels."""
        if not self._buffers:
            return
        inputs = paddle.concat([self._inputs(x) for x in batch[::2]], axis=1)
        totals = None
        with paddle.no_grad():
            groups = self.groups(inputs)
            for x in groups:
                found = self.network.statistics(self.network.prepare(x), self.network.initial(1))
                totals = found if totals is None else [total + own for total, own in zip(totals, found)]
        for buffer, total in zip(self._buffers.values(), totals):
            buffer.set_value(total / len(groups))

    def groups(self, x: paddle.Tensor) -> list[paddle.Tensor]:
        """Inputs (T, N, ...) in groups of `GROUP` tasks, each as one task (1, ..., ...)."""
        starts = range(0, x.shape[0], self.GROUP)
        return [x[start : start + self.GROUP].flatten(0, 1).unsqueeze(0) for start in starts]

    def predict(self, x_spt, y_spt, x_qry, statistics: str | None = None) -> np.ndarray:
        """The outputs for the query set: (T, N, n_way), or (N, n_way) of one task; no weight changes.

        Args:
            x_spt, y_spt, x_qry: support inputs (T, N, ...) with labels (T, N), and query inputs (T, N, ...);
                or of one task, without T.
            statistics: what batch norm knows when it answers, one of `STATISTICS`; by default the first.
                "query" are those of the whole episode, support and query set together.
        """
        statistics = self._choice_of(statistics)
        batch, single = self._task_set(x_spt, y_spt, x_qry)
        with paddle.no_grad():
            outputs = [self._answer(*task, statistics).numpy() for task in self._chunks(batch)]
        outputs = np.concatenate(outputs)
        return outputs[0] if single else outputs

    def _answer(self, x_spt, y_spt, x_qry, statistics: str) -> paddle.Tensor:
        """The outputs (T, N, n_way) for tensors with the axis of tasks; a subclass computes them."""
        raise NotImplementedError

    def embed(self, x: paddle.Tensor, statistics: str = "query") -> paddle.Tensor:
        """Embeddings (T, N, ...) of inputs (T, N, ...), differentiable by the network's parameters unless the
        statistics are the population's."""
        tasks, population = x.shape[0], None
        if statistics == "population":
            population = [tensor.expand([tasks, *tensor.shape[1:]]) for tensor in self._buffers.values()]
        return self.network.outputs(self.network.prepare(x), self.network.initial(tasks), population)
