"""An adapted network as a program of Paddle's own operators, which runs without this library."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

from ..errors import UserError
from ..files import check_target, write_together
from ..learners.base import Learner

# One label a line. No JSON: Paddle 3 takes every file PATH*.json for a program.
CLASSES = ".classes.txt"


class _Answer(nn.Layer):
    """The probabilities of the classes of a task."""

    def __init__(self, network, classes):
        super().__init__()
        self.network, self.classes = network, classes

    def forward(self, x):
        return F.softmax(self.network(x)[:, : self.classes], axis=-1)


def export(
    learner: Learner, params: list[paddle.Tensor], support: np.ndarray, classes: tuple, path: str
) -> list[str]:
    """See `Task.export`.

    Args:
        params: as `learner.adapt` returns them for one task.
        support: the support images, (N, C, H, W).
    """
    check_target(path, "path", may_make_folder=True)
    folder, name = os.path.split(path)
    network = learner.network.frozen(params, paddle.to_tensor(support))
    answer = _Answer(network, len(classes))
    answer.eval()
    shape = list(support.shape[1:])
    with tempfile.TemporaryDirectory() as place:
        specification = [paddle.static.InputSpec([None, *shape], "float32", "images")]
        try:
            paddle.jit.save(answer, os.path.join(place, name), input_spec=specification)
        except Exception as error:  # Paddle raises many types for what it cannot trace in a user's network
            kind = type(learner.net).__name__
            raise UserError(f"Paddle cannot save the network {kind} ({type(error).__name__}).") from error
        contents = {file.name: file.read_bytes() for file in sorted(Path(place).iterdir())}
    contents[name + CLASSES] = "".join(f"{label}\n" for label in classes).encode()
    write_together(folder or ".", contents)
    return [os.path.join(folder, file) for file in sorted(contents)]
