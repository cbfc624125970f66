"""Choosing elements: gathering, embedding and stacking that can be differentiated twice.

Gather and scatter are each other's derivative, so a pair of PyLayers has derivatives of every order. Paddle
2.6 has none of the second order for its own gather, stack and embedding, Paddle 3.3 none for its embedding.
"""

from __future__ import annotations

import paddle
from paddle import Tensor
from paddle.autograd import PyLayer


class _Gather(PyLayer):
    @staticmethod
    def forward(ctx, x, index):
        ctx.index, ctx.rows = index, x.shape[0]
        return paddle.gather(x, index)

    @staticmethod
    def backward(ctx, grad):
        return _Scatter.apply(grad, ctx.index, ctx.rows), None


class _Scatter(PyLayer):
    @staticmethod
    def forward(ctx, grad, index, rows):
        ctx.index = index
        # What several windows or tokens chose gets the sum of their gradients.
        return paddle.scatter_nd_add(
            paddle.zeros([rows] + grad.shape[1:], grad.dtype), index.unsqueeze(1), grad
        )

    @staticmethod
    def backward(ctx, grad):
        return _Gather.apply(grad, ctx.index), None


def gather(x: Tensor, index: Tensor) -> Tensor:
    """Rows of x (n, ...) by an index (m,) of integers from 0 to n - 1: (m, ...). A row may be named twice."""
    return _Gather.apply(x, index)


def embedding(tokens: Tensor, weight: Tensor, padding_idx: int | None = None) -> Tensor:
    """Rows of the weight (n, d) by tokens of any shape: (..., d); zeros without a gradient for padding."""
    rows = gather(weight, tokens.flatten())
    if padding_idx is not None:
        is_padding = tokens.flatten() == padding_idx % weight.shape[0]
        rows = rows * (1.0 - is_padding.astype(weight.dtype)).unsqueeze(1)
    return rows.reshape(tokens.shape + [weight.shape[1]])


def stack(tensors: list[Tensor], axis: int = 0) -> Tensor:
    """Tensors of one shape side by side along a new axis."""
    return paddle.concat([tensor.unsqueeze(axis) for tensor in tensors], axis)


def flatten(x: Tensor, start_axis: int = 0, stop_axis: int = -1) -> Tensor:
    """The axes from start to stop, which is among them, as one. Stock: no second derivative at all."""
    start, stop = start_axis % x.ndim, stop_axis % x.ndim
    return x.reshape(x.shape[:start] + [-1] + x.shape[stop + 1 :])
