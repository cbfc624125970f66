"""Prototypical networks: the nearest class mean in a learned embedding.

Snell, Swersky, Zemel 2017, "Prototypical Networks for Few-shot Learning". The prototype of a class is the
mean embedding of its support inputs (equation 1), and a query input belongs to a class by the softmax over
the negative squared Euclidean distances (equation 2). Training episodes may have more classes than those of
the test: the paper takes 60.
"""

from __future__ import annotations

import paddle
import paddle.nn.functional as F

from .embedding import EmbeddingLearner


def prototypes(embeddings: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
    """The mean embedding of each class.

    Args:
        embeddings: (T, N, F).
        labels: (T, N), whole numbers 0 .. n_way - 1.

    Returns:
        (T, n_way, F), n_way from the highest label.

    Raises:
        ValueError: a class below the highest has no input.
    """
    members = F.one_hot(labels, int(labels.max()) + 1).astype(embeddings.dtype)
    counts = members.sum(axis=1).unsqueeze(-1)
    if float(counts.min()) == 0:
        raise ValueError("every label from 0 to the highest needs an input in the support set of each task")
    return paddle.matmul(members, embeddings, transpose_x=True) / counts


def squared_distances(points: paddle.Tensor, centres: paddle.Tensor) -> paddle.Tensor:
    """Squared Euclidean distances (T, N, M) of points (T, N, F) from centres (T, M, F)."""
    squares = [(x * x).sum(axis=-1, keepdim=True) for x in (points, centres)]
    products = paddle.matmul(points, centres, transpose_y=True)
    return squares[0] + squares[1].transpose([0, 2, 1]) - 2 * products


class PrototypicalLearner(EmbeddingLearner):
    """A prototypical network. Its outputs are negative squared distances of the query inputs from the
    prototypes.

    Args:
        net: the network of the embedding, such as `Conv4`.
        chunk, optimizer: as of `Learner`.
    """

    def __init__(self, net: paddle.nn.Layer, chunk: int | None = None, optimizer=None):
        super().__init__(net, "cross-entropy", chunk, optimizer)

    def meta_loss(self, x_spt, y_spt, x_qry, y_qry) -> tuple[paddle.Tensor, paddle.Tensor]:
        """The mean of -log p over the query sets (Snell et al. 2017, algorithm 1), and the accuracy."""
        batch, _ = self._task_set(x_spt, y_spt, x_qry, y_qry)
        losses, scores = [], []
        for *task, labels in self._chunks(batch):
            logits, targets = self._answer(*task, "query"), self.objective.targets(labels)
            losses.append(self.objective.loss(logits, targets))
            scores.append(self.objective.score(logits.detach(), targets))
        return paddle.concat(losses).mean(), paddle.concat(scores).mean()

    def _answer(self, x_spt, y_spt, x_qry, statistics):
        shots = x_spt.shape[1]
        embeddings = self.embed(paddle.concat([x_spt, x_qry], axis=1), statistics).flatten(2)
        centres = prototypes(embeddings[:, :shots], self.objective.targets(y_spt).numbers)
        return -squared_distances(embeddings[:, shots:], centres)
