"""The contestants that compute with Paddle: this library, and the loop that the competition's reproduction published."""
from __future__ import annotations

import os

import paddle
import paddle.distributed as dist
import paddle.nn.functional as F

from ..device import select_device
from ..learner import MetaLearner
from ..network import BLOCKS, EPSILON, MAML
from .contestants import OURS


def join(rank, processes, port):
    """Meet the other processes of the contestant."""
    if processes == 1:
        return
    endpoints = [f"127.0.0.1:{port + number}" for number in range(processes)]
    os.environ.update(PADDLE_TRAINER_ID=str(rank), PADDLE_TRAINERS_NUM=str(processes), PADDLE_CURRENT_ENDPOINT=endpoints[rank],
                      PADDLE_TRAINER_ENDPOINTS=",".join(endpoints), PADDLE_MASTER=endpoints[0], PADDLE_DISTRI_BACKEND="gloo")
    dist.init_parallel_env()


def make(contestant, problem, device):
    """The side of a contestant in this process."""
    select_device(device)
    return (Ours if contestant.side == OURS else Competition)(problem, contestant.order)


class _PaddleSide:
    def __init__(self, problem, order):
        self.problem, self.settings, self.order = problem, problem.settings, order
        n_way, image_size = self.settings.n_way, problem.batch[0].shape[-1]
        self.net = MAML(n_way=n_way, in_channels=problem.batch[0].shape[2], width=self.settings.width, image_size=image_size)
        self.optimizer = paddle.optimizer.Adam(learning_rate=self.settings.meta_lr, parameters=self.net.parameters())
        self.reset()

    def reset(self):
        """Back to the initial weights."""
        for parameter, array in zip(self.net.parameters(), self.problem.weights):
            parameter.set_value(array)

    def meta_iteration(self):
        """Meta-gradient and step of the meta-optimizer. Returns this process's part of the loss, a float."""
        loss = self.meta_gradient()
        if dist.get_world_size() > 1:
            self._sum_over_processes()
        self.optimizer.step()
        self.optimizer.clear_grad()
        return loss * self.problem.weight

    def _sum_over_processes(self):
        parameters = self.net.parameters()
        gradients = paddle.concat([p.grad.reshape([-1]) for p in parameters]) * self.problem.weight
        dist.all_reduce(gradients)
        for parameter, gradient in zip(parameters, gradients.split([p.size for p in parameters])):
            parameter.grad.set_value(gradient.reshape(parameter.shape))

    def gradients(self):
        """The meta-gradient that `meta_gradient` left, as arrays."""
        return [p.grad.numpy() for p in self.net.parameters()]

    @staticmethod
    def synchronize():
        """Wait for the GPU."""
        if paddle.get_device() != "cpu":
            paddle.device.synchronize()

    @staticmethod
    def device_memory():
        """Peak of the memory allocated on the GPU, in bytes."""
        return paddle.device.cuda.max_memory_allocated()


class Ours(_PaddleSide):
    """This library."""

    def __init__(self, problem, order):
        super().__init__(problem, order)
        self.learner = MetaLearner(self.net, inner_steps=self.settings.inner_steps, inner_lr=self.settings.inner_lr, order=order,
                                   chunk=self.settings.chunk)

    def meta_gradient(self):
        """Leave the meta-gradient of the process's tasks in the parameters. Returns their mean query loss, a float."""
        loss, _ = self.learner.meta_loss(*self.problem.batch)
        loss.backward()
        return float(loss)


class Competition(_PaddleSide):
    """The competition's meta-iteration: task by task, stock operators, first order.

    The query set is scored before the first step and after every one; only the last score is differentiated.
    """

    def __init__(self, problem, order):
        super().__init__(problem, order)
        width = self.settings.width
        # Batch norm asks for running statistics, although it uses the batch's own.
        self._running = [(paddle.zeros([width]), paddle.ones([width])) for _ in range(BLOCKS)]

    def meta_gradient(self):
        """As `Ours.meta_gradient`."""
        dtype = self.net.parameters()[0].dtype
        losses = []
        for x_spt, y_spt, x_qry, y_qry in zip(*self.problem.batch):
            x_spt, x_qry = paddle.to_tensor(x_spt).astype(dtype), paddle.to_tensor(x_qry).astype(dtype)
            losses.append(self._adapt_and_score(x_spt, paddle.to_tensor(y_spt), x_qry, paddle.to_tensor(y_qry)))
        loss = sum(losses) / len(losses)
        loss.backward()
        return float(loss)

    def _adapt_and_score(self, x_spt, y_spt, x_qry, y_qry):
        fast, steps = self.net.parameters(), self.settings.inner_steps
        with paddle.no_grad():
            self._score(x_qry, y_qry, fast)
        for step in range(steps):
            gradients = paddle.grad(F.cross_entropy(self._logits(x_spt, fast), y_spt), fast)
            fast = [p - self.settings.inner_lr * g for p, g in zip(fast, gradients)]
            with paddle.set_grad_enabled(step == steps - 1):
                loss = self._score(x_qry, y_qry, fast)
        return loss

    def _score(self, x, y, params):
        logits = self._logits(x, params)
        float((F.softmax(logits, axis=1).argmax(axis=1) == y).astype(logits.dtype).mean())  # the accuracy, which is reported
        return F.cross_entropy(logits, y)

    def _logits(self, x, params):
        for number, (mean, variance) in enumerate(self._running):
            weight, bias, scale, shift = params[4 * number:4 * number + 4]
            x = F.conv2d(x, weight, bias, padding=1)
            x = F.batch_norm(x, mean, variance, scale, shift, training=True, epsilon=EPSILON)
            x = F.max_pool2d(F.relu(x), kernel_size=2, stride=2)
        return F.linear(x.flatten(1), params[-2], params[-1])
