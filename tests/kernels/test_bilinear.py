"""Bilinear operators against differences, with constants where networks have them."""

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest

from paddle_maml.kernels.bilinear import bilinear
from paddle_maml.kernels.differences import hessian_by_differences

RANDOM = np.random.RandomState(0)
X, W, W2, DEPTHWISE = (
    RANDOM.standard_normal(shape) for shape in ((6, 2, 6, 6), (4, 2, 3, 3), (2, 2, 3, 3), (2, 1, 3, 3))
)


def conv(x, w, **options):
    return bilinear(lambda x, w: F.conv2d(x, w, **options), x, w)


def cube(y):
    return (y * y * y).sum()


def constant(array):
    return paddle.to_tensor(array)


CASES = {
    "the input is a constant": (lambda w: cube(conv(constant(X), w)), [W]),
    "the weight is a constant": (lambda x: cube(conv(x, constant(W))), [X]),
    "none is": (lambda x, w: cube(conv(x, w, padding=1, stride=2)), [X, W]),
    "two layers": (lambda v, w: cube(conv(paddle.tanh(conv(constant(X), v, padding=1)), w)), [W2, W]),
    "groups of one channel": (lambda w: cube(conv(constant(X), w, groups=2)), [DEPTHWISE]),
    "one dimension": (lambda w: cube(bilinear(F.conv1d, constant(X[:, :, 0]), w)), [W[:, :, 0]]),
}


@pytest.mark.parametrize("name", CASES)
def test_second_derivatives(float64, name):
    function, arrays = CASES[name]
    vectors = [paddle.to_tensor(RANDOM.standard_normal(a.shape)).unsqueeze(0) for a in arrays]

    def gradient(point, create_graph=False):
        point = [p.squeeze(0).detach() for p in point]
        for p in point:
            p.stop_gradient = False
        return point, paddle.grad(function(*point), point, create_graph=create_graph)

    theta = [paddle.to_tensor(a).unsqueeze(0) for a in arrays]
    leaves, gradients = gradient(theta, create_graph=True)
    products = paddle.grad(gradients, leaves, [v.squeeze(0) for v in vectors])

    def gradient_at(point):
        with paddle.enable_grad():
            return [g.detach().unsqueeze(0) for g in gradient(point)[1]]

    for product, expected in zip(products, hessian_by_differences(gradient_at, theta, vectors)):
        assert float(expected.norm()) > 0.1
        assert float((product - expected.squeeze(0)).norm()) <= 1e-7 * float(expected.norm())


def test_outputs_are_the_operators(float64):
    x, w = paddle.to_tensor(X), paddle.to_tensor(W)
    np.testing.assert_array_equal(conv(x, w).numpy(), F.conv2d(x, w).numpy())
