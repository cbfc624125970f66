"""This library's own trace of an export: what a reader does, by the learner that trains everywhere else."""

from __future__ import annotations

import contextlib
import time

import numpy as np
import paddle

from ..engine.training import meta_gradient
from ..kernels.differences import default_dtype
from ..learners.maml import MetaLearner
from ..networks.conv4 import MAML
from .format import Export, Trace

TOGETHER = 32  # test episodes at a time


def own_trace(export: Export, order: int, dtype: str) -> Trace:
    """Train as an export says and keep the quantities of a trace."""
    about, arrays = export.about, {}
    with default_dtype(dtype):
        learner = _learner(export, order)
    parameters = dict(learner.net.named_parameters())
    optimizer = _Adam(list(parameters.values()), about["adam"])
    first = _tasks(export, 0, dtype)
    arrays["support_loss"] = learner.finetune(*first[:2], *first[:2])[1]
    arrays["query_loss"] = learner.finetune(*first)[1]
    by_iteration = {"loss": [], "accuracy": [], "seconds": []}
    for iteration in range(about["iterations"]):
        tasks = _tasks(export, iteration, dtype)
        began = time.perf_counter()
        loss, accuracy = meta_gradient(learner, tasks)
        if iteration == 0:
            arrays.update({f"gradient/{name}": np.array(p.grad.numpy()) for name, p in parameters.items()})
        optimizer.step(about["meta_lr"][iteration])
        seconds = time.perf_counter() - began
        for name, value in (("loss", loss), ("accuracy", accuracy), ("seconds", seconds)):
            by_iteration[name].append(value)
        if iteration + 1 in about["weights_after"]:
            arrays.update(
                {
                    f"weights_after_{iteration + 1}/{name}": np.array(p.numpy())
                    for name, p in parameters.items()
                }
            )
    arrays.update({name: np.array(values) for name, values in by_iteration.items()})
    arrays["test_accuracy"], arrays["test_loss"] = _test(export, learner, dtype)
    return Trace(
        {
            "export": about["id"],
            "order": order,
            "dtype": dtype,
            "framework": "PaddlePaddle",
            "framework_version": paddle.__version__,
            "reader": "paddle_maml",
            "memory_bytes": _peak_memory(),
        },
        arrays,
    )


def _learner(export, order):
    about = export.about
    net = MAML(
        about["n_way"], about["in_channels"], about["width"], about["image_size"], about["architecture"]
    )
    for name, parameter in net.named_parameters():
        parameter.set_value(export.weights[name].astype(paddle.get_default_dtype()))
    return MetaLearner(net, about["inner_steps"], about["inner_lr"], order)


def _tasks(export, iteration, dtype):
    size = export.about["meta_batch"]
    arrays = export.episode_arrays("train", range(iteration * size, (iteration + 1) * size))
    return tuple(a.astype(dtype) if a.dtype.kind == "f" else a for a in arrays)


def _test(export, learner, dtype):
    """Accuracy and loss of each test episode after its inner steps, two float64 arrays (E,)."""
    about, results = export.about, []
    for start in range(0, about["test_episodes"], TOGETHER):
        numbers = range(start, min(start + TOGETHER, about["test_episodes"]))
        scores = learner.finetune(*export.episode_arrays("test", numbers), steps=about["test_inner_steps"])
        results.append([values[:, -1] for values in scores])
    return [np.concatenate(parts) for parts in zip(*results)]


class _Adam:
    """Paddle's Adam, given another rate for each step."""

    def __init__(self, parameters, numbers):
        self._optimizer = paddle.optimizer.Adam(
            0.0, numbers["beta1"], numbers["beta2"], numbers["epsilon"], parameters
        )

    def step(self, rate):
        self._optimizer.set_lr(rate)
        self._optimizer.step()
        self._optimizer.clear_grad()


def _peak_memory():
    """Bytes of this process at its peak; None where the system does not tell."""
    with contextlib.suppress(OSError), open("/proc/self/status", encoding="ascii") as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None
