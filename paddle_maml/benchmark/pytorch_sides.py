"""The contestants that compute with PyTorch alone."""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.func import grad, vmap

from ..errors import UserError
from .contestants import Contestant, Problem

BLOCKS, EPSILON = 4, 1e-5


def make(contestant: Contestant, problem: Problem, device: str) -> Loop | Vmap:
    """The side of a contestant in this process."""
    prepare(contestant, device)
    return {"loop": Loop, "channels_last": ChannelsLast, "vmap": Vmap}[contestant.variant](
        problem, contestant.order, device
    )


def prepare(contestant: Contestant, device: str) -> None:
    """Have PyTorch use the contestant's threads and processes."""
    if device != "cpu" and not torch.cuda.is_available():
        raise UserError(
            "this PyTorch cannot use the GPU that Paddle computes on; install one that can, or choose "
            "--device cpu."
        )
    torch.set_num_threads(contestant.threads)
    if contestant.processes > 1:
        dist.init_process_group("gloo")


class _PyTorchSide:
    memory_format = torch.contiguous_format

    def __init__(self, problem, order, device="cpu"):
        self.problem, self.settings, self.order = problem, problem.settings, order
        self.device = torch.device(device.replace("gpu", "cuda"))
        self.dtype = torch.from_numpy(problem.weights[0]).dtype
        self.initial = [self._tensor(array) for array in problem.weights]
        self.parameters = [torch.nn.Parameter(tensor.clone()) for tensor in self.initial]
        self.optimizer = torch.optim.Adam(self.parameters, lr=self.settings.meta_lr)

    def _tensor(self, array):
        tensor = torch.tensor(array, device=self.device)
        if tensor.is_floating_point():
            tensor = tensor.to(self.dtype)
        return tensor.to(memory_format=self.memory_format) if tensor.ndim == 4 else tensor

    def reset(self) -> None:
        """Back to the initial weights."""
        with torch.no_grad():
            for parameter, tensor in zip(self.parameters, self.initial):
                parameter.copy_(tensor)

    def meta_iteration(self) -> float:
        """Meta-gradient and step of the meta-optimizer. Returns the loss, a float."""
        loss = self.meta_gradient()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss

    def _sum_over_processes(self):
        """Add up gradients and losses of all processes, in one message. Returns the loss."""
        loss = self._losses.mean() * self.problem.share
        if dist.is_initialized():
            message = torch.cat([p.grad.reshape(-1) for p in self.parameters] + [loss.reshape(1)])
            dist.all_reduce(message)
            *gradients, loss = message.split([p.numel() for p in self.parameters] + [1])
            for parameter, gradient in zip(self.parameters, gradients):
                parameter.grad.copy_(gradient.reshape(parameter.shape))
        return loss.item()

    def losses(self) -> list[float]:
        """The query loss of each of this process's tasks in the last meta-iteration."""
        return self._losses.tolist()

    def gradients(self) -> list[np.ndarray]:
        """The meta-gradient that `meta_gradient` left, as arrays."""
        return [p.grad.cpu().numpy() for p in self.parameters]

    def synchronize(self) -> None:
        """Wait for the GPU."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def device_memory(self) -> int:
        """Peak of the memory allocated on the GPU, in bytes."""
        return torch.cuda.max_memory_allocated()


class Loop(_PyTorchSide):
    """Task by task, backward after each, so that only one task's graph is in memory."""

    def meta_gradient(self) -> float:
        """Leave the meta-gradient of all processes' tasks in the parameters. Returns their mean query loss, a
        float."""
        losses = []
        for task in zip(*self.problem.batch):
            loss = self._query_loss(*(self._tensor(array) for array in task))
            self._backward(loss * (self.problem.share / len(self.problem.batch[0])))
            losses.append(loss.detach())
        self._losses = torch.stack(losses)
        return self._sum_over_processes()

    def _query_loss(self, x_spt, y_spt, x_qry, y_qry):
        fast = self.parameters
        for _ in range(self.settings.inner_steps):
            gradients = torch.autograd.grad(
                F.cross_entropy(_logits(x_spt, fast), y_spt), fast, create_graph=self.order == 2
            )
            fast = [p - self.settings.inner_lr * g for p, g in zip(fast, gradients)]
        return F.cross_entropy(_logits(x_qry, fast), y_qry)

    def _backward(self, loss):
        loss.backward()


class ChannelsLast(Loop):
    """The same with images and weights laid out channels last."""

    memory_format = torch.channels_last


class Vmap(_PyTorchSide):
    """All tasks at once, by torch.func.

    The second order normalizes with elementary operators: under vmap PyTorch 2.13's own batch norm gives
    another second derivative than without, and a meta-gradient that is off by 0.3 % (in float64, 2 inner
    steps). Its first order is right.
    """

    def meta_gradient(self) -> float:
        """As `Loop.meta_gradient`."""
        batch = [self._tensor(array) for array in self.problem.batch]
        losses = vmap(self._task_loss, in_dims=(None, 0, 0, 0, 0))(self.parameters, *batch)
        (losses.mean() * self.problem.share).backward()
        self._losses = losses.detach()
        return self._sum_over_processes()

    def _task_loss(self, params, x_spt, y_spt, x_qry, y_qry):
        normalize = _batch_norm if self.order == 1 else _elementary_batch_norm
        support_gradient = grad(lambda fast: F.cross_entropy(_logits(x_spt, fast, normalize), y_spt))
        for _ in range(self.settings.inner_steps):
            with torch.set_grad_enabled(self.order == 2):
                gradients = support_gradient(params)
            params = [p - self.settings.inner_lr * g for p, g in zip(params, gradients)]
        return F.cross_entropy(_logits(x_qry, params, normalize), y_qry)


def _batch_norm(x, scale, shift):
    return F.batch_norm(x, None, None, scale, shift, training=True, eps=EPSILON)


def _elementary_batch_norm(x, scale, shift):
    variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    scale = scale * torch.rsqrt(variance + EPSILON)
    return x * scale[:, None, None] + (shift - mean * scale)[:, None, None]


def _logits(x, params, normalize=_batch_norm):
    for number in range(BLOCKS):
        weight, bias, scale, shift = params[4 * number : 4 * number + 4]
        x = normalize(F.conv2d(x, weight, bias, padding=1), scale, shift)
        x = F.max_pool2d(F.relu(x), 2)
    return x.flatten(1) @ params[-2] + params[-1]
