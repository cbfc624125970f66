"""The contestant that computes with JAX.

It compiles all tasks as one program, a vmap of a scan over the inner steps; or one task, with the inner steps
unrolled. JAX 0.10 on a CPU is several times slower in convolutions of a loop, and in those that have a kernel
for each task.
"""

from __future__ import annotations

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.example_libraries import optimizers
from jax.experimental import multihost_utils

from ..errors import UserError
from .contestants import Contestant, Problem

BLOCKS, EPSILON = 4, 1e-5


def make(contestant: Contestant, problem: Problem, device: str) -> Jax:
    """The side of a contestant in this process. JAX takes its threads from NPROC."""
    jax.config.update("jax_enable_x64", problem.weights[0].dtype == np.float64)
    if device == "cpu":
        jax.config.update("jax_platforms", "cpu")
    if contestant.processes > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        address = "{MASTER_ADDR}:{MASTER_PORT}".format_map(os.environ)
        jax.distributed.initialize(address, contestant.processes, int(os.environ["RANK"]))
    if device != "cpu" and jax.default_backend() != "gpu":
        raise UserError(
            "this JAX cannot use the GPU that Paddle computes on; install one that can, or choose "
            "--device cpu."
        )
    return Jax(problem, contestant.order, contestant.variant, contestant.processes)


class Jax:
    """MAML by JAX's transformations."""

    def __init__(self, problem: Problem, order: int, variant: str, processes: int = 1):
        self.problem, self.settings, self.order = problem, problem.settings, order
        self.variant, self.processes = variant, processes
        dtype = problem.weights[0].dtype
        self.initial = [jnp.asarray(array) for array in problem.weights]
        batch = [jnp.asarray(array, dtype if array.dtype.kind == "f" else None) for array in problem.batch]
        together = len(batch[0]) if variant == "vmap" else 1
        self.parts = [
            [array[first : first + together] for array in batch]
            for first in range(0, len(batch[0]), together)
        ]
        start, update, self._parameters = optimizers.adam(self.settings.meta_lr)
        self._start, self._update = jax.jit(start), jax.jit(update)
        self.reset()
        # Compiled here, so that no meta-iteration is longer than the others.
        gradient = jax.jit(jax.value_and_grad(self._loss, has_aux=True))
        self._gradient = gradient.lower(self.initial, self.parts[0]).compile()
        self._add = jax.jit(lambda a, b: jax.tree.map(jnp.add, a, b))

    def reset(self) -> None:
        """Back to the initial weights."""
        self.steps, self.state = 0, self._start(self.initial)

    def meta_iteration(self) -> float:
        """Meta-gradient and step of the meta-optimizer. Returns the loss, a float."""
        loss = self.meta_gradient()
        self.state = self._update(self.steps, self._gradients, self.state)
        self.steps += 1
        return loss

    def meta_gradient(self) -> float:
        """Compute the meta-gradient of all processes' tasks. Returns their mean query loss, a float."""
        params, self._losses, total = self._parameters(self.state), [], None
        for part in self.parts:
            (loss, losses), gradients = self._gradient(params, part)
            self._losses.append(losses)
            total = (loss, gradients) if total is None else self._add(total, (loss, gradients))
        if self.processes > 1:
            total = jax.tree.map(lambda x: x.sum(axis=0), multihost_utils.process_allgather(total))
        loss, self._gradients = total
        return float(loss)

    def gradients(self) -> list[np.ndarray]:
        """The meta-gradient that `meta_gradient` found, as arrays."""
        return [np.asarray(gradient) for gradient in self._gradients]

    def losses(self) -> list[float]:
        """The query loss of each of this process's tasks in the last meta-iteration."""
        return jnp.concatenate(self._losses).tolist()

    def synchronize(self) -> None:
        """Wait for what is still being computed."""
        jax.block_until_ready(self.state)

    @staticmethod
    def device_memory() -> int:
        """Peak of the memory allocated on the GPU, in bytes."""
        return jax.local_devices()[0].memory_stats()["peak_bytes_in_use"]

    def _loss(self, params, batch):
        """What these tasks add to the mean query loss of all, and the loss of each."""
        task_loss = functools.partial(self._task_loss, params)
        if self.variant == "vmap":
            losses = jax.vmap(task_loss)(*batch)
        else:
            losses = jnp.stack([task_loss(*task) for task in zip(*batch)])
        return losses.sum() * (self.problem.share / len(self.problem.batch[0])), losses

    def _task_loss(self, params, x_spt, y_spt, x_qry, y_qry):
        def inner_step(fast, _):
            at = lax.stop_gradient(fast) if self.order == 1 else fast
            gradients = jax.grad(_cross_entropy)(at, x_spt, y_spt)
            return [p - self.settings.inner_lr * g for p, g in zip(fast, gradients)], None

        fast, _ = lax.scan(
            inner_step, params, None, length=self.settings.inner_steps, unroll=self.variant == "loop"
        )
        return _cross_entropy(fast, x_qry, y_qry)


def _cross_entropy(params, x, y):
    scores = jax.nn.log_softmax(_logits(params, x))
    return -jnp.take_along_axis(scores, y[:, None], axis=1).mean()


def _logits(params, x):
    """Channels are last in between, as JAX's libraries have them."""
    x = x.transpose(0, 2, 3, 1)
    for number in range(BLOCKS):
        weight, bias, scale, shift = params[4 * number : 4 * number + 4]
        x = lax.conv_general_dilated(x, weight, (1, 1), "SAME", dimension_numbers=("NHWC", "OIHW", "NHWC"))
        x = jax.nn.standardize(x + bias, axis=(0, 1, 2), epsilon=EPSILON) * scale + shift
        x = lax.reduce_window(jax.nn.relu(x), -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return x.transpose(0, 3, 1, 2).reshape(len(x), -1) @ params[-2] + params[-1]
