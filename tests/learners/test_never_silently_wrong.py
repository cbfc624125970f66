"""Networks and losses that would get another meta-gradient than they have, without a word."""

import numpy as np
import paddle
import pytest
from learners.test_any_network import gradients, perceptron, regression, tasks
from networks.test_culprit import Detached, with_a_hook
from paddle import nn

from paddle_maml.learners.maml import MetaLearner
from paddle_maml.networks.mlp import MLP
from paddle_maml.networks.twice_differentiable import twice_differentiable


class Hidden(nn.Layer):
    """A layer that also reaches a parameter of its own in another way."""

    def __init__(self, way):
        super().__init__()
        self.linear, self.bias = nn.Linear(4, 3), self.create_parameter([3], is_bias=True)
        bias = self.bias
        self.kept = {"dict": {"b": bias}, "tuple": (bias,), "nested": [[bias]], "closure": None}[way]
        self.way, self.of_closure = way, lambda: bias

    def forward(self, x):
        bias = {
            "dict": lambda: self.kept["b"],
            "tuple": lambda: self.kept[0],
            "nested": lambda: self.kept[0][0],
            "closure": self.of_closure,
        }[self.way]()
        return self.linear(x) + bias


@pytest.mark.parametrize("way", ["dict", "tuple", "nested", "closure"])
def test_a_parameter_that_is_not_seen_is_named(float64, way):
    with pytest.raises(ValueError, match="Hidden uses bias in a way that is not seen"):
        MetaLearner(Hidden(way), order=1).meta_loss(*tasks(4))


def test_a_network_that_became_another_is_refused(float64):
    net = perceptron()
    learner = MetaLearner(net)
    learner.meta_loss(*tasks(4))
    net[2] = nn.Linear(6, 3)
    with pytest.raises(ValueError, match="has other parameters than it had: make the learner anew"):
        learner.meta_loss(*tasks(4))


def test_hooks_are_held_against_differences(float64):
    with pytest.raises(ValueError, match=r"second derivatives of 1 \(Tanh\) are wrong by .*: replace it, or"):
        MetaLearner(with_a_hook(), order=2, inner_lr=0.5).meta_loss(*tasks(4))
    normed = nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 6)), nn.Tanh(), nn.Linear(6, 3))
    with pytest.raises(ValueError, match=r"second derivatives of 0 \(Linear\) are missing"):
        MetaLearner(normed, order=2).meta_loss(*tasks(4))


class Insisting(nn.Layer):
    """A network that computes in float32 alone."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        if x.dtype != paddle.float32:
            raise TypeError("float32, please")
        return self.net(x)


def test_differences_in_float32_alone():
    paddle.seed(3)
    layers = [nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3)]
    net = nn.Sequential(*layers)
    arrays = [a.astype("float32") if a.dtype == float else a for a in tasks(8)]
    _, exact = gradients(MetaLearner(net, inner_steps=3, inner_lr=0.1), arrays)
    _, near = gradients(
        MetaLearner(Insisting(net), inner_steps=3, inner_lr=0.1, hessian="difference"), arrays
    )
    exact, near = (np.concatenate([g.ravel() for g in found]) for found in (exact, near))
    assert np.linalg.norm(near - exact) <= 1e-3 * np.linalg.norm(exact)


def test_targets_that_could_be_of_one_task_or_of_many_are_refused(float64):
    x_spt, y_spt, x_qry, y_qry = regression()
    learner = MetaLearner(nn.Linear(2, 1), loss=lambda o, y: ((o.squeeze(-1) - y) ** 2).mean())
    with pytest.raises(ValueError, match=r"must be \(T, N, n\), or \(N, n\) for one task, not \(2, 5\)"):
        learner.meta_loss(x_spt, y_spt[..., 0], x_qry, y_qry[..., 0])


def test_a_loss_that_does_not_depend_on_the_network_is_refused(float64):
    learner = MetaLearner(nn.Linear(2, 1), loss=lambda o, y: ((o.detach() - y) ** 2).mean())
    with pytest.raises(ValueError, match="the loss does not depend on the parameters of the network"):
        learner.meta_loss(*regression())


class ByMode(nn.Layer):
    """Right in eval(), wrong in train()."""

    def __init__(self):
        super().__init__()
        self.linear, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        hidden = self.linear(x)
        return self.last(Detached.apply(hidden) if self.training else paddle.tanh(hidden))


def test_each_mode_is_held_against_differences(float64):
    net = ByMode()
    learner = MetaLearner(net, inner_lr=0.5)
    learner.eval()
    learner.meta_loss(*tasks(4))
    learner.train()
    with pytest.raises(ValueError, match="second derivatives of the forward of ByMode itself are wrong"):
        learner.meta_loss(*tasks(4))


class Inexact(MLP):
    """A network for tasks side by side whose second derivatives are not known, and wrong."""

    exact = False

    def outputs(self, prepared, theta, statistics=None):
        return Detached.apply(super().outputs(prepared, theta, statistics))


def test_a_task_network_of_ones_own_is_held_against_differences_too(float64):
    with pytest.raises(ValueError, match="second derivatives of Inexact are wrong"):
        MetaLearner(Inexact(4, (5,), 3), inner_lr=0.5).meta_loss(*tasks(4))


def test_the_loss_alone_without_gradients(float64):
    learner, arrays = MetaLearner(perceptron()), tasks(4)
    with paddle.no_grad():
        loss, accuracy = learner.meta_loss(*arrays)
    accuracies, losses = learner.finetune(*arrays)
    assert float(loss) == pytest.approx(losses[:, -1].mean())
    assert float(accuracy) == pytest.approx(accuracies[:, -1].mean())


def test_advice_fits_the_fault(float64):
    with pytest.raises(ValueError, match="LayerNorm.*: convert the network with twice_differentiable"):
        MetaLearner(nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3))).meta_loss(*tasks(4))
    with pytest.raises(ValueError, match="the loss are missing.*: replace it, or"):
        MetaLearner(perceptron(), loss=nn.functional.cross_entropy).meta_loss(*tasks(4))


def test_frozen_parameters_are_not_copied(float64):
    """A body that is frozen costs nothing but its computation; what a layer writes to is copied."""
    body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1D(4))
    body[0].weight.stop_gradient = True
    net = twice_differentiable(nn.Sequential(body, nn.Linear(4, 3)))
    learner = MetaLearner(net, order=1)
    with learner.network.using(learner.network._own):
        inside = net[0][0].weight, net[0][1]._mean
        assert inside[0].data_ptr() == learner._by_name["0.0.weight"].data_ptr()
    assert inside[1].data_ptr() != net[0][1]._mean.data_ptr()
