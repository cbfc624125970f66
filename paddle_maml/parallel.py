"""Several processes, one meta-gradient: the tasks of a meta-batch are divided over the ranks of `paddle.distributed`.

Every rank holds the same weights and optimizer state. It computes its share of the tasks; one sum over the ranks gives all of them
the gradient of the whole meta-batch, and each takes the same step. So the number of ranks changes neither the episodes nor,
beyond rounding, the result.
"""
from __future__ import annotations

import os
import sys

import numpy as np

from .errors import UserError

# What Paddle's launcher and spawn tell a process of a group.
_GROUP_SIZE = "PADDLE_TRAINERS_NUM"


class Ranks:
    """The group of processes this one belongs to; by itself it is a group of one.

    Attributes:
        rank: this process's number, from 0 on; rank 0 writes files and speaks.
        size: processes in the group.
    """

    def __init__(self, rank=0, size=1):
        self.rank, self.size = rank, size

    @classmethod
    def join(cls):
        """Join the group that the launcher or `spawn` made, if it made one. Call it once, after the device is chosen."""
        if not launched():
            return cls()
        import paddle.distributed as dist

        dist.init_parallel_env()
        return cls(dist.get_rank(), dist.get_world_size())

    def share(self, numbers):
        """This rank's part of a sequence: contiguous, and in sizes that differ by one at most."""
        start, end = (len(numbers) * r // self.size for r in (self.rank, self.rank + 1))
        return numbers[start:end]

    def sum_gradients(self, parameters, numbers):
        """Add up gradients and some numbers over the ranks, in place and in one message.

        Args:
            parameters: the same on every rank; a rank without tasks has no `.grad`.
            numbers: a list of floats.
        Returns:
            The sums of the numbers, the same on every rank.
        """
        if self.size == 1:
            return numbers
        import paddle
        import paddle.distributed as dist

        gradients = [paddle.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        dtype = gradients[0].dtype
        message = paddle.concat([g.flatten() for g in gradients] + [paddle.to_tensor(numbers, dtype)])
        dist.all_reduce(message)
        sizes = [int(np.prod(p.shape)) for p in parameters]
        *sums, totals = paddle.split(message, sizes + [len(numbers)])
        for parameter, total in zip(parameters, sums):
            parameter.grad = total.reshape(parameter.shape)
        return totals.tolist()

    def sum_array(self, array):
        """The sum of a float64 NumPy array over the ranks."""
        if self.size == 1:
            return array
        import paddle
        import paddle.distributed as dist

        tensor = paddle.to_tensor(array)
        dist.all_reduce(tensor)
        return tensor.numpy()


def launched():
    """Whether this process was started as one of several."""
    return int(os.environ.get(_GROUP_SIZE, "1")) > 1


def run_processes(function, arguments, count):
    """Run function(*arguments) in `count` processes of one group on this machine's CPU, one thread each.

    The function is importable and its arguments can be pickled. A process ends itself with an exit status; a UserError inside is
    the function's own to report.

    Raises:
        SystemExit: a process ended with another status than 0, which becomes this one's; the others are stopped.
        UserError: a process was killed.
    """
    import paddle.distributed as dist

    # One thread for each process: the cores are shared out by the processes already.
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    group = dist.spawn(function, args=arguments, nprocs=count, join=False, backend="gloo")
    try:
        while not group.join(timeout=1):
            pass
    except Exception as error:
        codes = [process.exitcode for process in group.processes]
        for code in codes:
            if code and code > 0:
                sys.exit(code)
        raise UserError(f"A process of the run was killed ({error}); the last checkpoint is good: continue with --resume.") from None
