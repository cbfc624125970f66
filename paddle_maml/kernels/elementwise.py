"""Activations, softmax and dropout that can be differentiated twice.

Each gives what the function of the same name in `paddle.nn.functional` gives, to rounding, and has second
derivatives in Paddle 2.6 and 3.3, where the stock one refuses. Either it is written out with operators that
have one, or it is a PyLayer whose backward is made of such operators. A PyLayer here has one input:
with two, Paddle could not be asked for the gradient by one of them alone. It keeps its input and not its
result, because a node that holds its own output is never freed.
"""

from __future__ import annotations

import math

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor
from paddle.autograd import PyLayer


class _Exp(PyLayer):
    """Stock: no second derivative in Paddle 2.6."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return paddle.exp(x)

    @staticmethod
    def backward(ctx, grad):
        [x] = ctx.saved_tensor()
        return grad * exp(x)


def exp(x: Tensor) -> Tensor:
    """e^x for every element."""
    return _Exp.apply(x)


class _Erf(PyLayer):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return paddle.erf(x)

    @staticmethod
    def backward(ctx, grad):
        [x] = ctx.saved_tensor()
        return grad * exp(-x * x) * (2.0 / math.sqrt(math.pi))


def erf(x: Tensor) -> Tensor:
    """The error function for every element."""
    return _Erf.apply(x)


class _Softmax(PyLayer):
    @staticmethod
    def forward(ctx, x, axis):
        ctx.save_for_backward(x)
        ctx.axis = axis
        return F.softmax(x, axis)

    @staticmethod
    def backward(ctx, grad):
        [x] = ctx.saved_tensor()
        probabilities = softmax(x, ctx.axis)
        product = grad * probabilities
        return product - probabilities * product.sum(axis=ctx.axis, keepdim=True)


def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """Probabilities that sum to one over the axis."""
    return _Softmax.apply(x, axis)


def log_softmax(x: Tensor, axis: int = -1) -> Tensor:
    """The logarithm of `softmax`, also where a probability rounds to zero.

    On a CPU the stock function cuts off at -64; this one does not.
    """
    # The sum does not depend on what is subtracted before and added after, so that is a constant.
    shifted = x - x.detach().max(axis=axis, keepdim=True)
    return shifted - exp(shifted).sum(axis=axis, keepdim=True).log()


def gelu(x: Tensor, approximate: bool = False) -> Tensor:
    """x Phi(x) with the normal distribution function Phi, or with its approximation by tanh.

    References:
        Hendrycks and Gimpel, 2016, "Gaussian Error Linear Units", arXiv:1606.08415.
    """
    if approximate:
        return 0.5 * x * (1.0 + paddle.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * (x * x * x))))
    return 0.5 * x * (1.0 + erf(x * math.sqrt(0.5)))


def relu6(x: Tensor) -> Tensor:
    """min(max(x, 0), 6), with derivative 0 at 0."""
    return paddle.clip(F.relu(x), max=6.0)


def single(value: float) -> float:
    """A number as Paddle's operators keep the numbers that they are built with, in single precision."""
    return float(np.float32(value))


def selu(x: Tensor, scale: float, alpha: float) -> Tensor:
    """scale * x where x is positive, else scale * alpha * (e^x - 1)."""
    return single(scale) * F.elu(x, alpha)


def hardsigmoid(x: Tensor) -> Tensor:
    """x / 6 + 1 / 2, cut to 0 and 1; with Paddle's 0.1666667 for 1 / 6."""
    return paddle.clip(x * single(0.1666667) + 0.5, 0.0, 1.0)


def hardswish(x: Tensor) -> Tensor:
    """x times (x + 3) / 6, the second factor cut to 0 and 1."""
    return x * paddle.clip(x + 3.0, 0.0, 6.0) / 6.0


def softsign(x: Tensor) -> Tensor:
    """x / (1 + |x|)."""
    return x / (1.0 + x.abs())


def log_sigmoid(x: Tensor) -> Tensor:
    """The logarithm of the sigmoid."""
    # Beyond the threshold softplus(x) is x, here where e^-x is below the rounding of float64.
    return -F.softplus(-x, threshold=40)


def mish(x: Tensor) -> Tensor:
    """x tanh(softplus(x))."""
    return x * paddle.tanh(F.softplus(x))


def prelu(x: Tensor, weight: Tensor, channel_axis: int = 1) -> Tensor:
    """x where x is positive, else x times the weight, one number or one for each channel."""
    if weight.size > 1:
        shape = [1] * x.ndim
        shape[channel_axis] = -1
        weight = weight.reshape(shape)
    positive = (x > 0).astype(x.dtype)
    return x * (positive + (1.0 - positive) * weight)


def dropout(
    x: Tensor,
    p: float = 0.5,
    axis: int | list[int] | None = None,
    training: bool = True,
    mode: str = "upscale_in_train",
) -> Tensor:
    """Elements dropped with probability p: from the same seed the same as `F.dropout` drops."""
    with paddle.no_grad():
        factor = F.dropout(paddle.ones_like(x), p, axis=axis, training=training, mode=mode)
    return x * factor


def dropout_channels(x: Tensor, p: float, training: bool, data_format: str) -> Tensor:
    """Whole channels dropped with probability p: the same as `F.dropout2d` or `F.dropout3d` drops."""
    stock = F.dropout2d if x.ndim == 4 else F.dropout3d
    with paddle.no_grad():
        factor = stock(paddle.ones_like(x), p, training=training, data_format=data_format)
    return x * factor
