"""The contestant that computes with PaddleFSL 1.0: task by task, first order."""

from __future__ import annotations

import paddle
from paddlefsl.model_zoo import maml
from paddlefsl.utils import clone_model

from ..engine.device import select_device
from ..engine.parallel import Ranks
from ..networks.plain_conv4 import plain_conv4
from .contestants import Contestant, Problem
from .paddle_sides import PaddleSide


def make(contestant: Contestant, problem: Problem, device: str) -> PaddleFSL:
    """The side of a contestant in this process."""
    select_device(device)
    return PaddleFSL(problem, contestant.order, Ranks.join())


class PaddleFSL(PaddleSide):
    """PaddleFSL's inner adaptation, which also scores the query set, on its copy of the model."""

    def __init__(self, *args):
        super().__init__(*args)
        self.model = _Network(self.net.parameters())

    def meta_gradient(self) -> float:
        """As `Ours.meta_gradient`."""
        self._losses = []
        for x_spt, y_spt, x_qry, y_qry in zip(*self.problem.batch):
            loss, _ = maml.inner_adapt(
                clone_model(self.model),
                ((x_spt, y_spt), (x_qry, y_qry)),
                paddle.nn.CrossEntropyLoss(),
                self.settings.inner_lr,
                self.settings.inner_steps,
            )
            (loss * (self.problem.share / len(self.problem.batch[0]))).backward()
            self._losses.append(loss.detach())
        loss = float(sum(self._losses)) / len(self._losses) * self.problem.share
        [loss] = self.ranks.sum_gradients(self.net.parameters(), [loss])
        return loss

    def losses(self) -> list[float]:
        """As `Ours.losses`, of the last meta-iteration."""
        return [float(loss) for loss in self._losses]


class _Network(paddle.nn.Layer):
    """Not PaddleFSL's own network: Paddle counts the running statistics of its batch norm as parameters, and
    today's `paddle.grad` refuses them."""

    def __init__(self, parameters):
        super().__init__()
        for number, parameter in enumerate(parameters):
            self.add_parameter(str(number), parameter)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Logits (N, n_way) of images (N, C, H, W)."""
        return plain_conv4(x, self.parameters())
