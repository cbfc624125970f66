"""The contestants that compute with a meta-learning library for PyTorch: learn2learn, higher, TorchOpt.

Each goes through the tasks as the library's own MAML example does, on a network of PyTorch's layers, and
differentiates a task's query loss before the next task begins, so that only one task's graph is in memory.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .contestants import HIGHER, LEARN2LEARN, TORCHOPT, Contestant, Problem
from .pytorch_sides import BLOCKS, EPSILON, Loop, prepare


def make(contestant: Contestant, problem: Problem, device: str) -> Loop:
    """The side of a contestant in this process."""
    prepare(contestant, device)
    side = {LEARN2LEARN: Learn2Learn, HIGHER: Higher, TORCHOPT: TorchOpt}[contestant.side]
    return side(problem, contestant.order, device)


class _Library(Loop):
    def __init__(self, *args):
        super().__init__(*args)
        self.net = _network(self.parameters)


class Learn2Learn(_Library):
    """learn2learn's wrapper of a network."""

    def __init__(self, *args):
        import learn2learn

        super().__init__(*args)
        self.maml = learn2learn.algorithms.MAML(
            self.net, lr=self.settings.inner_lr, first_order=self.order == 1
        )

    def _query_loss(self, x_spt, y_spt, x_qry, y_qry):
        learner = self.maml.clone()
        for _ in range(self.settings.inner_steps):
            learner.adapt(F.cross_entropy(learner(x_spt), y_spt))
        return F.cross_entropy(learner(x_qry), y_qry)


class _AdaptedBySteps(_Library):
    """What higher and TorchOpt share: in first order their adapted parameters are cut off from the initial
    ones, and the meta-gradient is that by the adapted ones."""

    def _backward(self, loss):
        for parameter, gradient in zip(self.parameters, torch.autograd.grad(loss, self._start)):
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient


class Higher(_AdaptedBySteps):
    """higher's inner loop."""

    def __init__(self, *args):
        super().__init__(*args)
        self.inner_optimizer = torch.optim.SGD(self.parameters, lr=self.settings.inner_lr)

    def _query_loss(self, x_spt, y_spt, x_qry, y_qry):
        import higher

        with higher.innerloop_ctx(
            self.net, self.inner_optimizer, copy_initial_weights=False, track_higher_grads=self.order == 2
        ) as (net, optimizer):
            for _ in range(self.settings.inner_steps):
                optimizer.step(F.cross_entropy(net(x_spt), y_spt))
            self._start = list(net.parameters(time=0))  # where none but the last are kept: the last
            return F.cross_entropy(net(x_qry), y_qry)


class TorchOpt(_AdaptedBySteps):
    """TorchOpt's differentiable optimizer. It computes the second order's graph for the first order too."""

    def __init__(self, *args):
        import torchopt

        super().__init__(*args)
        self.inner_optimizer = torchopt.MetaSGD(self.net, lr=self.settings.inner_lr)

    def _query_loss(self, x_spt, y_spt, x_qry, y_qry):
        import torchopt

        adapted = self.net, self.inner_optimizer
        before = [torchopt.extract_state_dict(target, by="reference") for target in adapted]
        for _ in range(self.settings.inner_steps):
            self.inner_optimizer.step(F.cross_entropy(self.net(x_spt), y_spt))
            if self.order == 1:
                torchopt.stop_gradient(self.net)
        loss = F.cross_entropy(self.net(x_qry), y_qry)
        self._start = list(self.net.parameters()) if self.order == 1 else self.parameters
        for target, state in zip(adapted, before):
            torchopt.recover_state_dict(target, state)
        return loss


class _Linear(nn.Module):
    """PyTorch's own has its weight the other way round than the problem."""

    def __init__(self, weight, bias):
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight + self.bias


def _network(parameters):
    """The network as layers, with these `nn.Parameter`s for its own."""
    layers = []
    for number in range(BLOCKS):
        weight, bias, scale, shift = parameters[4 * number : 4 * number + 4]
        convolution = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
        convolution.weight, convolution.bias = weight, bias
        normalization = nn.BatchNorm2d(len(scale), eps=EPSILON, track_running_stats=False)
        normalization.weight, normalization.bias = scale, shift
        layers += [convolution, normalization, nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), _Linear(*parameters[-2:]))
