"""An LSTM that reads the support set and then answers, without any gradient step.

Hochreiter, Younger, Conwell 2001, "Learning to Learn Using Gradient Descent": the weights of a recurrent
network are learned over many tasks, and what it learns of one task is its state. Santoro et al. 2016,
"Meta-Learning with Memory-Augmented Neural Networks": in every episode the classes have other labels, so that
only the support set can tell them.

The LSTM reads an embedding of each support input together with its label. From the state after the last one
every query input is read by itself, with zeros for its label, so that its answer depends on no other query
input. The loss is that of these answers alone. Santoro et al. give each label one input late, and score the
answer to every input on the way.
"""

from __future__ import annotations

import zlib

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

from .embedding import EmbeddingLearner

# What opens and shuts a gate, and what the rest of the initial weights are times Paddle's own.
OPEN, SMALL = 3.0, 0.1


class LSTMLearner(EmbeddingLearner):
    """An LSTM over embeddings and labels.

    In training, order and labels of the support set are shuffled. In testing it is read in rounds, an input
    of each class in each round, the classes in the order of their labels; inputs of one class as they come.

    It begins as a memory with a place for each class; by Paddle's own initial weights a label is hardly seen.

    A task has few classes. Were batch norm to have the statistics of each by itself in training, the LSTM
    would rely on what that takes away from these classes, and answer worse by the population's: it has those
    of `GROUP` tasks together, as they stand in the batch. Processes that share a meta-batch have groups of
    their own, so that their number changes nothing where each has whole groups.

    Args:
        net: the network of the embedding, such as `Conv4`.
        n_way: classes of a task.
        features: numbers of an embedding.
        hidden: units of the LSTM, at best many times 2 n_way.
        chunk, optimizer: as of `Learner`; chunk counts in testing.

    Raises:
        ValueError: a size is below 1; and what `Learner` raises.
    """

    GROUP = 8

    def __init__(
        self,
        net: nn.Layer,
        n_way: int,
        features: int,
        hidden: int = 150,
        chunk: int | None = None,
        optimizer=None,
    ):
        super().__init__(net, "cross-entropy", chunk, optimizer)
        for name, value in [("n_way", n_way), ("features", features), ("hidden", hidden)]:
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        self.n_way, self.features, self.hidden = n_way, features, hidden
        self.lstm = nn.LSTMCell(features + n_way, hidden)
        self.readout = nn.Linear(hidden, n_way)
        self._begin_as_a_memory()

    def meta_loss(
        self, x_spt, y_spt, x_qry, y_qry, iteration: int = 0
    ) -> tuple[paddle.Tensor, paddle.Tensor]:
        """The mean cross-entropy of the answers to the query sets, and the accuracy.

        Args:
            x_spt, y_spt, x_qry, y_qry: as of `Learner`.
            iteration: the number of the meta-iteration. With the support inputs of a task it decides how that
                is shuffled, wherever the task stands in a batch.
        """
        (x_spt, y_spt, x_qry, y_qry), _ = self._task_set(x_spt, y_spt, x_qry, y_qry)
        randoms = [np.random.RandomState([zlib.crc32(x.tobytes()), iteration]) for x in x_spt.numpy()]
        orders = np.stack([random.permutation(x_spt.shape[1]) for random in randoms])
        names = paddle.to_tensor(np.stack([random.permutation(self.n_way) for random in randoms]))
        labels, answers = (paddle.take_along_axis(names, self._labels(y), axis=1) for y in (y_spt, y_qry))
        groups = self.groups(paddle.concat([x_spt, x_qry], axis=1))
        embeddings = paddle.concat([self.embed(group).flatten(0, 1).flatten(1) for group in groups])
        embeddings = embeddings.reshape([x_spt.shape[0], -1, embeddings.shape[1]])
        logits, targets = self._logits(embeddings, labels, orders), self.objective.targets(answers)
        loss, score = self.objective.loss(logits, targets), self.objective.score(logits.detach(), targets)
        return loss.mean(), score.mean()

    def _answer(self, x_spt, y_spt, x_qry, statistics):
        embeddings = self.embed(paddle.concat([x_spt, x_qry], axis=1), statistics).flatten(2)
        labels = self._labels(y_spt)
        return self._logits(embeddings, labels, np.stack([in_rounds(task) for task in labels.numpy()]))

    def _begin_as_a_memory(self):
        """Initial weights by which the LSTM is a memory with a place for each class.

        Place l has units d in pairs, along random directions p_d of an embedding. Its input gate is open for
        the label l alone, and its forget gate keeps: c_ld sums up tanh(p_d x) over the inputs x of the class.
        The output gates of a pair are s(2 p_d x) and s(-2 p_d x), s the sigmoid, and the readout of class l
        takes the difference, tanh(p_d x): of a query input x it is the sum of tanh(p_d x) tanh(c_ld) over d,
        which says how alike x and the class are. All of it is learned further.
        """
        (n_way, features, hidden), lstm = (self.n_way, self.features, self.hidden), self.lstm
        pairs = hidden // (2 * n_way)
        units = 2 * pairs * n_way
        place = np.repeat(np.eye(n_way), 2 * pairs, axis=0)
        sign = np.tile(np.repeat([[1.0], [-1.0]], pairs, axis=0), [n_way, 1])
        directions = np.tile(paddle.randn([pairs, features]).numpy() * features**-0.5, [2 * n_way, 1])
        # The gates are input, forget, cell, output.
        weight = SMALL * lstm.weight_ih.numpy().reshape([4, hidden, -1])
        weight[0, :units, features:] = 2 * OPEN * place
        weight[2, :units, :features] = directions
        weight[3, :units, :features] = 2 * sign * directions
        bias = lstm.bias_ih.numpy().reshape([4, hidden])
        bias[0, :units], bias[1, :units] = -OPEN, OPEN
        readout = SMALL * self.readout.weight.numpy()
        readout[:units] += 2 * place * sign / max(pairs, 1) ** 0.5
        lstm.weight_ih.set_value(weight.reshape([4 * hidden, -1]))
        lstm.weight_hh.set_value(SMALL * lstm.weight_hh.numpy())
        lstm.bias_ih.set_value(bias.flatten())
        self.readout.weight.set_value(readout)

    def _labels(self, y):
        """Labels (T, N) as int64; ValueError for those that the LSTM has no place for."""
        labels = self.objective.targets(y)
        if labels.highest >= self.n_way:
            raise ValueError(f"labels must be 0 to {self.n_way - 1}, not up to {labels.highest}")
        return labels.numbers

    def _logits(self, embeddings, labels, orders):
        """Logits (T, N, n_way) of the query inputs, whose embeddings (T, ..., features) follow those of the
        support inputs, when these are read in the orders (T, N)."""
        if embeddings.shape[2] != self.features:
            raise ValueError(f"embeddings must have {self.features} numbers, not {embeddings.shape[2]}")
        (tasks, shots), queries = orders.shape, embeddings.shape[1] - orders.shape[1]
        pairs = paddle.concat(
            [embeddings[:, :shots], F.one_hot(labels, self.n_way).astype(embeddings.dtype)], axis=2
        )
        # Numbered over all tasks.
        places = paddle.to_tensor((orders + shots * np.arange(tasks)[:, None]).T.flatten())
        steps = pairs.flatten(0, 1).gather(places).reshape([shots, tasks, -1])
        state = [paddle.zeros([tasks, self.hidden], pairs.dtype)] * 2
        for step in steps.unbind(axis=0):
            _, state = self.lstm(step, state)
        empty = paddle.zeros([tasks, queries, self.n_way], pairs.dtype)
        inputs = paddle.concat([embeddings[:, shots:], empty], axis=2).flatten(0, 1)
        state = [part.unsqueeze(1).expand([tasks, queries, self.hidden]).flatten(0, 1) for part in state]
        return self.readout(self.lstm(inputs, state)[0]).reshape([tasks, queries, self.n_way])


def in_rounds(labels: np.ndarray) -> np.ndarray:
    """The order (N,) in which the inputs of one task are read in testing: the first of each class by label,
    then the second of each, and so on."""
    rounds = [np.sum(labels[:place] == label) for place, label in enumerate(labels)]
    return np.lexsort((labels, rounds))
