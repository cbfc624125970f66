"""The contestants that compute with Paddle: this library, and the loop that the competition's reproduction
published."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F

from ..engine.device import select_device
from ..engine.parallel import ALONE, Ranks
from ..engine.training import meta_gradient
from ..learners.maml import MetaLearner
from ..networks.conv4 import MAML
from ..networks.plain_conv4 import plain_conv4
from .contestants import OURS, Contestant, Problem


def make(contestant: Contestant, problem: Problem, device: str) -> Ours | Competition:
    """The side of a contestant in this process."""
    select_device(device)
    return (Ours if contestant.side == OURS else Competition)(problem, contestant.order, Ranks.join())


class PaddleSide:
    def __init__(self, problem, order, ranks=ALONE):
        self.problem, self.settings, self.order, self.ranks = problem, problem.settings, order, ranks
        n_way, image_size = self.settings.n_way, problem.batch[0].shape[-1]
        self.net = MAML(
            n_way=n_way,
            in_channels=problem.batch[0].shape[2],
            width=self.settings.width,
            image_size=image_size,
        )
        self.optimizer = paddle.optimizer.Adam(
            learning_rate=self.settings.meta_lr, parameters=self.net.parameters()
        )
        self.reset()

    def reset(self) -> None:
        """Back to the initial weights."""
        for parameter, array in zip(self.net.parameters(), self.problem.weights):
            parameter.set_value(array)

    def meta_iteration(self) -> float:
        """Meta-gradient and step of the meta-optimizer. Returns the loss, a float."""
        loss = self.meta_gradient()
        self.optimizer.step()
        self.optimizer.clear_grad()
        return loss

    def gradients(self) -> list[np.ndarray]:
        """The meta-gradient that `meta_gradient` left, as arrays."""
        return [p.grad.numpy() for p in self.net.parameters()]

    @staticmethod
    def synchronize() -> None:
        """Wait for the GPU."""
        if paddle.get_device() != "cpu":
            paddle.device.synchronize()

    @staticmethod
    def device_memory() -> int:
        """Peak of the memory allocated on the GPU, in bytes."""
        return paddle.device.cuda.max_memory_allocated()


class Ours(PaddleSide):
    """This library."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.learner = MetaLearner(
            self.net,
            inner_steps=self.settings.inner_steps,
            inner_lr=self.settings.inner_lr,
            order=self.order,
            chunk=self.settings.chunk,
        )

    def meta_gradient(self) -> float:
        """Leave the meta-gradient of all processes' tasks in the parameters. Returns their mean query loss, a
        float."""
        loss, _ = meta_gradient(self.learner, self.problem.batch, self.problem.share, self.ranks)
        return loss

    def losses(self) -> list[float]:
        """The query loss of each of this process's tasks."""
        return self.learner.finetune(*self.problem.batch)[1][:, -1].tolist()


class Competition(PaddleSide):
    """The competition's meta-iteration: task by task, stock operators, first order.

    The query set is scored before the first step and after every one; only the last score is differentiated.
    """

    def meta_gradient(self) -> float:
        """As `Ours.meta_gradient`."""
        dtype = self.net.parameters()[0].dtype
        losses = []
        for x_spt, y_spt, x_qry, y_qry in zip(*self.problem.batch):
            x_spt, x_qry = paddle.to_tensor(x_spt).astype(dtype), paddle.to_tensor(x_qry).astype(dtype)
            losses.append(
                self._adapt_and_score(x_spt, paddle.to_tensor(y_spt), x_qry, paddle.to_tensor(y_qry))
            )
        loss = sum(losses) / len(losses) * self.problem.share
        loss.backward()
        self._losses = [task_loss.detach() for task_loss in losses]
        [loss] = self.ranks.sum_gradients(self.net.parameters(), [float(loss)])
        return loss

    def losses(self) -> list[float]:
        """As `Ours.losses`, of the last meta-iteration."""
        return [float(loss) for loss in self._losses]

    def _adapt_and_score(self, x_spt, y_spt, x_qry, y_qry):
        fast, steps = self.net.parameters(), self.settings.inner_steps
        with paddle.no_grad():
            self._score(x_qry, y_qry, fast)
        for step in range(steps):
            gradients = paddle.grad(F.cross_entropy(plain_conv4(x_spt, fast), y_spt), fast)
            fast = [p - self.settings.inner_lr * g for p, g in zip(fast, gradients)]
            with paddle.set_grad_enabled(step == steps - 1):
                loss = self._score(x_qry, y_qry, fast)
        return loss

    def _score(self, x, y, params):
        logits = plain_conv4(x, params)
        float(
            (F.softmax(logits, axis=1).argmax(axis=1) == y).astype(logits.dtype).mean()
        )  # the accuracy, which is reported
        return F.cross_entropy(logits, y)
