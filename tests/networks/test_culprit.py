"""Which layer is named where second derivatives are missing or wrong."""

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn
from paddle.autograd import PyLayer

from paddle_maml.networks.culprit import culprit
from paddle_maml.networks.functional import Functional
from paddle_maml.networks.mlp import MLP
from paddle_maml.networks.twice_differentiable import trusted, twice_differentiable


class Detached(PyLayer):
    """tanh whose gradient takes what it should differentiate for a constant."""

    @staticmethod
    def forward(ctx, x):
        y = paddle.tanh(x)
        ctx.slope = (1 - y * y).detach()
        return y

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.slope


class Wrong(nn.Layer):
    def forward(self, x):
        return Detached.apply(x)


class Keyword(nn.Layer):
    def forward(self, x, *, scale):
        return x * scale


class Soft(nn.Layer):
    def forward(self, x):
        return F.softmax(x)


class Calls(nn.Layer):
    """A layer that is called with a keyword, then one that has no second derivative."""

    def __init__(self):
        super().__init__()
        self.linear, self.scaled, self.soft = nn.Linear(4, 3), Keyword(), Soft()

    def forward(self, x):
        return self.soft(self.scaled(self.linear(x), scale=2.0))


class Itself(nn.Layer):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        return F.softmax(self.linear(x))


def with_a_hook():
    layer = nn.Tanh()
    layer.register_forward_post_hook(lambda layer, inputs, output: Detached.apply(output))
    return nn.Sequential(nn.Linear(4, 6), layer, nn.Linear(6, 3))


@pytest.mark.parametrize(
    "make, name, convertible",
    [
        (lambda: nn.Sequential(nn.Linear(4, 6), Wrong(), nn.Linear(6, 3)), "1 (Wrong)", False),
        (lambda: nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3)), "1 (LayerNorm)", True),
        (Calls, "soft (Soft)", False),
        (Itself, "the forward of Itself itself", False),
        (with_a_hook, "1 (Tanh)", False),
        (lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), "the loss", False),
    ],
)
def test_the_layer_at_fault(float64, make, name, convertible):
    paddle.seed(1)
    x = paddle.to_tensor(np.random.RandomState(0).standard_normal((5, 4)))
    assert culprit(Functional(make()), x) == (name, convertible)


def test_another_task_network_is_named_by_its_class(float64):
    assert culprit(MLP(4, (3,), 2), paddle.ones([5, 4])) == ("MLP", False)


def test_hooks_are_not_trusted():
    assert trusted(nn.Tanh()) and not trusted(with_a_hook()[1])
    assert not trusted(nn.LayerNorm(3)) and trusted(twice_differentiable(nn.LayerNorm(3)))
    assert not trusted(nn.utils.weight_norm(nn.Linear(3, 3)))
