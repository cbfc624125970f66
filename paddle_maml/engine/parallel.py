"""Several processes, one meta-gradient: the tasks of a meta-batch are divided over the ranks of
`paddle.distributed`.

Every rank holds the same weights and optimizer state. It computes its share of the tasks; one sum over the
ranks gives all of them the gradient of the whole meta-batch, and each takes the same step. So the number of
ranks changes neither the episodes nor, beyond rounding, the result.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Sequence

import numpy as np
import paddle
import paddle.distributed as dist

from ..errors import UserError
from .processes import share


class Ranks:
    """The group of processes that this one belongs to; by itself, a group of one.

    Attributes:
        rank: this process's number, from 0 on.
        size: processes in the group.
    """

    def __init__(self, rank: int = 0, size: int = 1):
        self.rank, self.size = rank, size

    @classmethod
    def join(cls) -> Ranks:
        """Join the group that this process was started in. Call it once, after the device is chosen."""
        if int(os.environ.get("PADDLE_TRAINERS_NUM", "1")) < 2:
            return cls()
        with _silence():
            dist.init_parallel_env()
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def leads(self) -> bool:
        """Whether this rank is the one that writes files and speaks."""
        return self.rank == 0

    def share(self, numbers: Sequence) -> Sequence:
        """This rank's part of a sequence."""
        return share(numbers, self.rank, self.size)

    def sum_gradients(self, parameters: list, numbers: list[float]) -> list[float]:
        """Add up gradients and some numbers over the ranks, in one message.

        Args:
            parameters: the same on every rank; their `.grad` becomes the sum. A rank without tasks has none
                before.
            numbers: a list of floats.
        Returns:
            The sums of the numbers, a list of floats, the same on every rank.
        """
        if self.size == 1:
            return numbers
        gradients = [paddle.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        dtype = gradients[0].dtype
        message = paddle.concat(
            [g.flatten() for g in gradients] + [paddle.to_tensor(numbers, dtype)]
        ).detach()
        _add_up(message)
        *sums, totals = paddle.split(message, [int(np.prod(p.shape)) for p in parameters] + [len(numbers)])
        for parameter, total in zip(parameters, sums):
            parameter.grad = total.reshape(parameter.shape)
        return totals.tolist()

    def sum_array(self, array: np.ndarray) -> np.ndarray:
        """The sum of a NumPy array over the ranks."""
        if self.size == 1:
            return array
        tensor = paddle.to_tensor(array)
        _add_up(tensor)
        return tensor.numpy()

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank; all ranks must ask, and all get the same answer."""
        if self.size == 1:
            return bool(flag)
        return bool(self.sum_array(np.array([float(flag)])).any())

    def agree(self, number: float) -> bool:
        """Whether a number is the same on all ranks."""
        return bool((self._of_all(number) == number).all())

    def largest(self, number: int) -> int:
        """The largest of a whole number on each rank."""
        return int(self._of_all(number).max())

    def _of_all(self, number):
        numbers = np.zeros(self.size)
        numbers[self.rank] = number
        return self.sum_array(numbers)


ALONE = Ranks()


@contextlib.contextmanager
def _silence():
    """Discard what native code writes: Paddle lists flags that it changed itself."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    kept = [os.dup(number) for number in (1, 2)]
    with open(os.devnull, "w") as nowhere:
        for number in (1, 2):
            os.dup2(nowhere.fileno(), number)
    try:
        yield
    finally:
        for number, copy in zip((1, 2), kept):
            os.dup2(copy, number)
            os.close(copy)


def _add_up(tensor):
    try:
        dist.all_reduce(tensor)
    except Exception as error:
        # Gloo and NCCL raise many types when another rank is gone.
        raise UserError(
            "Another process of the run has ended: continue from the last checkpoint with --resume, or "
            "start again."
        ) from error
