"""Reptile: the initial weights move towards those that training on a task ends with.

Nichol, Achiam, Schulman 2018, "On First-Order Meta-Learning Algorithms", algorithm 2 (batched): with theta_K
the weights after K inner steps, each on a mini-batch of a task's images,

    theta_0 <- theta_0 + epsilon * mean over the tasks of (theta_K - theta_0).

To the meta-optimizer theta_0 - theta_K is the gradient: gradient descent of rate epsilon is that line.
"""

from __future__ import annotations

from typing import Iterator

import numpy as np
import paddle
from paddle import nn

from ..networks.culprit import leaves
from .maml import MetaLearner, last

# Of the inner Adam; its beta1 is 0, as in the paper's code (openai/supervised-reptile).
BETA2, EPSILON = 0.999, 1e-8


def mini_batches(
    draws: np.random.RandomState, inputs: int, size: int | None, count: int
) -> Iterator[np.ndarray]:
    """The inputs of each of so many mini-batches, int64: all in random order, again and again, cut into
    pieces that may span two rounds.

    Args:
        draws: its permutations; NumPy guarantees what they are.
        inputs: how many there are.
        size: inputs in a mini-batch; None, or more than there are: all.
    """
    size, waiting = min(size or inputs, inputs), np.zeros(0, np.int64)
    for _ in range(count):
        if len(waiting) < size:
            waiting = np.concatenate([waiting, draws.permutation(inputs)])
        yield waiting[:size]
        waiting = waiting[size:]


def adam_direction(gradient: paddle.Tensor, moments: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
    """What Adam without a first moment (Kingma and Ba 2015, beta1 = 0) multiplies by its rate.

    Args:
        gradient: (T, P).
        moments: (T, P + 1): the running mean of the squares, and last the weight of all squares in it, 1 -
            beta2^t after t steps from zero. It corrects the bias.

    Returns:
        (direction, moments): (T, P), and the moments after this step.
    """
    squares = paddle.concat([gradient * gradient, paddle.ones_like(moments[:, -1:])], axis=1)
    moments = moments + (1 - BETA2) * (squares - moments)
    root = paddle.sqrt(moments)
    weight = root[:, -1:]
    return gradient * weight / (root[:, :-1] + EPSILON * weight), moments


class ReptileLearner(MetaLearner):
    """Reptile over any network.

    In the paper's code Adam's second moment is not set back: it goes on from task to task. Here the tasks of
    a meta-batch are computed side by side, so all of them begin with one second moment, which is learned as
    theta_0 is: it moves towards the mean of those that they end with. It is in `second_moment`, with its
    weight (`adam_direction`), serves in testing too, and has to be stepped by plain gradient descent.

    Args:
        net, optimizer, loss, chunk: as of `MetaLearner`; the optimizer is plain gradient descent with rate 1
            unless given.
        inner_steps, inner_lr: K, and the rate of the inner optimizer.
        inner_optimizer: "adam", with beta1 = 0, or "sgd".
        inner_batch: inputs in the mini-batch of an inner step in training; by default all of a task.
        test_inner_batch: the same in adaptation to a support set; by default `inner_batch`.

    Raises:
        ValueError: inner_optimizer is none of its values, a mini-batch is below 1; and what `MetaLearner`
            raises.
    """

    def __init__(
        self,
        net: nn.Layer,
        inner_steps: int = 5,
        inner_lr: float = 0.001,
        inner_optimizer: str = "adam",
        inner_batch: int | None = None,
        test_inner_batch: int | None = None,
        chunk: int | None = None,
        optimizer=None,
        loss="cross-entropy",
    ):
        super().__init__(net, inner_steps, inner_lr, 1, chunk, optimizer=optimizer, loss=loss)
        if inner_optimizer not in ("adam", "sgd"):
            raise ValueError(f"inner_optimizer must be 'adam' or 'sgd', not {inner_optimizer!r}")
        for name, size in (("inner_batch", inner_batch), ("test_inner_batch", test_inner_batch)):
            if size is not None and size < 1:
                raise ValueError(f"{name} must be at least 1, not {size}")
        self.inner_batch = inner_batch
        self.test_inner_batch = inner_batch if test_inner_batch is None else test_inner_batch
        self.second_moment = None
        if inner_optimizer == "adam":
            theta = self._initial(1)
            self.second_moment = self.create_parameter(
                [sum(p.size for p in theta) + 1],
                dtype=theta[0].dtype,
                default_initializer=nn.initializer.Constant(0.0),
            )
        if optimizer is None:
            self._optimizer = paddle.optimizer.SGD(learning_rate=1.0, parameters=self.parameters())

    def meta_loss(
        self, x_spt, y_spt, x_qry, y_qry, draws: np.random.RandomState | None = None
    ) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Train on each task of a meta-batch; `loss.backward()` leaves the mean of theta_0 - theta_K in the
        parameters.

        Args:
            x_spt, y_spt, x_qry, y_qry: as of `MetaLearner`; here support and query set are one set, which the
                mini-batches are drawn from.
            draws: for the mini-batches, which have the same places in all tasks; by default from Paddle's
                random state.

        Returns:
            Loss and score of the last mini-batches before their step, means over the tasks, 0-d tensors.

        Raises:
            ValueError: arrays that do not belong together, or do not suit the network or the loss, or numbers
                that are not finite.
        """
        (x_spt, y_spt, x_qry, y_qry), _ = self._task_set(x_spt, y_spt, x_qry, y_qry)
        x = paddle.concat([x_spt, x_qry], axis=1)
        y = paddle.concat([y_spt, y_qry.astype(y_spt.dtype)], axis=1)
        draws = draws or np.random.RandomState(paddle.randint(2**31 - 1).item())
        batches = list(mini_batches(draws, x.shape[1], self.inner_batch, self.inner_steps))
        return self._with_gradient([x, y], lambda x, y: self._way(x, y, batches), self.second_moment)

    def _way(self, x, y, batches):
        """Sums over the tasks of a chunk: loss and score of the last mini-batch, theta_0 - theta_K, and the
        same of the second moment."""
        initial = self._initial(x.shape[0])
        theta, moments, loss, score = last(self._steps(x, y, batches, initial))
        sums = [loss.sum(), score.sum()] + [
            (before - after).detach().sum(axis=0, keepdim=True) for before, after in zip(initial, theta)
        ]
        return sums if moments is None else [*sums, (self._moments(x.shape[0]) - moments).sum(axis=0)]

    def _adaptation(self, x_spt, y_spt, steps=None):
        """Yield theta_0 .. theta_steps, on mini-batches that are always the same ones for a support set of
        that size."""
        draws = np.random.RandomState(0)
        batches = mini_batches(draws, x_spt.shape[1], self.test_inner_batch, self._count(steps))
        initial = self._initial(x_spt.shape[0])
        yield initial
        for theta, *_ in self._steps(x_spt, y_spt, batches, initial):
            yield theta

    def _steps(self, x, y, batches, theta):
        """Yield after each inner step theta, the moments of Adam, and each task's loss and score on the
        mini-batch before it."""
        tasks, moves, moments = x.shape[0], self._moves(), self._moments(x.shape[0])
        sizes = [p.size // tasks for p in theta]
        for places in batches:
            index = paddle.to_tensor(places)
            batch = self._set(x.index_select(index, axis=1), y.index_select(index, axis=1))
            theta = leaves(theta)
            loss, outputs, gradients = self._loss_and_gradient(theta, batch)
            with paddle.no_grad():
                moved = [g if own else paddle.zeros_like(g) for g, own in zip(gradients, moves)]
                direction = paddle.concat([g.flatten(1) for g in moved], axis=1)
                if moments is not None:
                    direction, moments = adam_direction(direction, moments)
                ways = (self.inner_lr * direction).split(sizes, axis=1)
                theta = [p - way.reshape(p.shape) for p, way in zip(theta, ways)]
                score = self.objective.score(outputs.detach(), batch[1])
            yield theta, moments, loss.detach(), score

    def _moments(self, tasks):
        """Adam's moments at theta_0 for each task, constants; None without Adam."""
        if self.second_moment is None:
            return None
        return self.second_moment.detach().unsqueeze(0).expand([tasks, self.second_moment.shape[0]])
