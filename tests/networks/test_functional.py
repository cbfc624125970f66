"""Any layer as a network of arguments: what is there is there again, and parameters are found wherever they
are."""

import numpy as np
import paddle
import pytest
from paddle import nn

from paddle_maml.networks.functional import Functional
from paddle_maml.networks.task_network import task_network


def random(*shape, seed=0):
    return paddle.to_tensor(np.random.RandomState(seed).standard_normal(shape))


def state(layer):
    return {name: tensor.numpy().copy() for name, tensor in layer.state_dict().items()}


def of_tasks(network, tasks=2):
    """Other parameters for each task, (T, ...)."""
    return [random(*p.shape, seed=number) * 0.5 for number, p in enumerate(network.initial(tasks))]


def test_tasks_have_parameters_of_their_own(float64):
    layer = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Sequential(nn.Linear(4, 2)))
    network = Functional(layer)
    theta, x = of_tasks(network), random(2, 5, 3, seed=9)
    outputs = network.outputs(x, theta)
    assert network.theta_names == ["0.weight", "0.bias", "2.0.weight", "2.0.bias"]
    for task in range(2):
        w0, b0, w1, b1 = (p[task] for p in theta)
        expected = paddle.tanh(x[task] @ w0 + b0) @ w1 + b1
        np.testing.assert_allclose(outputs[task].numpy(), expected.numpy(), rtol=1e-12)
    np.testing.assert_array_equal(network.outputs(x, network.initial(2))[1].numpy(), layer(x[1]).numpy())


class Shared(nn.Layer):
    """One weight used twice under two names, one that is not used, and one that is frozen."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.unused = nn.Linear(2, 2)
        self.frozen = nn.Linear(3, 3)
        for parameter in self.frozen.parameters():
            parameter.stop_gradient = True

    def forward(self, x):
        return self.second(paddle.tanh(self.first(self.frozen(x))))


def test_shared_unused_and_frozen_parameters(float64):
    layer = Shared()
    network = Functional(layer)
    assert network.theta_names == [
        "first.weight",
        "first.bias",
        "second.bias",
        "unused.weight",
        "unused.bias",
    ]
    theta, x = of_tasks(network, 1), random(1, 4, 3, seed=9)
    w, b0, b1, *_ = (p[0] for p in theta)
    expected = paddle.tanh(layer.frozen(x[0]) @ w + b0) @ w + b1
    np.testing.assert_allclose(network.outputs(x, theta)[0].numpy(), expected.numpy(), rtol=1e-12)
    params = network.parameters_of(theta)
    assert [p.shape[1:] for p in params] == [p.shape for p in layer.parameters()]
    for back, given in zip(network.theta_of(params), theta):
        assert back is given


def test_the_parameters_of_the_fused_lstm_are_reached(float64):
    """It keeps them in a list of its own beside Paddle's dicts."""

    class Reader(nn.Layer):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(3, 4)

        def forward(self, x):
            return self.lstm(x)[0][:, -1]

    layer, other = Reader(), Reader()
    network, x = Functional(layer), random(1, 5, 6, 3)
    theta = [p.unsqueeze(0) for p in other.parameters()]
    np.testing.assert_allclose(network.outputs(x, theta)[0].numpy(), other(x[0]).numpy(), rtol=1e-12)


def test_parameters_buffers_and_modes_are_as_before(float64):
    layer = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1D(4), nn.Dropout(0.5))
    layer(random(6, 3))  # moves the running statistics once
    network, before, own = Functional(layer), state(layer), [id(p) for p in layer.parameters()]
    x = random(2, 5, 3)
    network.outputs(x, of_tasks(network))
    network.outputs(x, of_tasks(network), statistics=[x])
    with pytest.raises(ZeroDivisionError), network.using(of_tasks(network, 1)):
        raise ZeroDivisionError
    assert [id(p) for p in layer.parameters()] == own
    assert all(part.training for part in layer.sublayers(include_self=True)) and layer[1]._momentum == 0.9
    for name, array in state(layer).items():
        np.testing.assert_array_equal(array, before[name])
    layer.eval()
    once, again = (network.outputs(x, network.initial(2)).numpy() for _ in range(2))
    np.testing.assert_array_equal(once, again)  # no dropout
    np.testing.assert_allclose(once[0], layer(x[0]).numpy(), rtol=1e-12)


def test_batch_norm_with_the_statistics_of_other_inputs(float64):
    layer = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1D(4))
    network, x, other = Functional(layer), random(1, 5, 3), random(1, 9, 3, seed=5)
    linear = layer[0]
    hidden, of = linear(x[0]), linear(other[0])
    variance = of.var(axis=0, unbiased=False)
    expected = (hidden - of.mean(axis=0)) / paddle.sqrt(variance + layer[1]._epsilon)
    outputs = network.outputs(x, network.initial(1), statistics=[other])
    np.testing.assert_allclose(outputs[0].numpy(), expected.numpy(), rtol=1e-10)


def test_whole_numbers_are_inputs_too(float64):
    layer = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 2))
    network, x = task_network(layer), paddle.to_tensor(np.arange(12).reshape(2, 2, 3) % 10)
    np.testing.assert_array_equal(network.outputs(x, network.initial(2))[1].numpy(), layer(x[1]).numpy())


@pytest.mark.parametrize(
    "layer, message",
    [
        (nn.ReLU(), "ReLU has no parameters that could be adapted"),
        ("a text", "must be a paddle.nn.Layer, not a str"),
    ],
)
def test_what_is_no_network_is_refused(layer, message):
    with pytest.raises(ValueError, match=message):
        task_network(layer)


@pytest.mark.parametrize(
    "forward, message",
    [
        (lambda layer, x: (x @ layer.weight, x), "must return one tensor, not a tuple"),
        (lambda layer, x: (x @ layer.weight).sum(), "must return an output for each of 4 inputs"),
        (
            lambda layer, x: (x @ layer.weight)[:3],
            r"must return an output for each of 4 inputs, not .*\(3, 2\)",
        ),
    ],
)
def test_outputs_that_are_none_are_refused(forward, message):
    class Wrong(nn.Layer):
        def __init__(self):
            super().__init__()
            self.weight = self.create_parameter([3, 2])

        def forward(self, x):
            return forward(self, x)

    network = Functional(Wrong())
    with pytest.raises(ValueError, match="Wrong " + message):
        network.outputs(paddle.ones([1, 4, 3]), network.initial(1))
