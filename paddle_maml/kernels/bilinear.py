"""Any bilinear operator of Paddle, such as a convolution, made differentiable twice by its first derivatives.

With <y, g> = sum(y * g), an operator y = f(x, w) that is linear in x and in w has the gradients X(g, w) and
W(x, g), defined by <f(x, w), g> = <x, X(g, w)> = <w, W(x, g)>. Those are bilinear too, so their gradients are
again f, X and W of other arguments: for vectors a and b, the function <a, X(g, w)> + <b, W(x, g)> has by g the
gradient f(a, w) + f(x, b), by w W(a, g), and by x X(g, b).

Stock: Paddle's own second derivative of conv2d is silently wrong where the input is a constant, as it is in a
network's first layer (2.6 and 3.3), and it has none on a CPU for groups of one channel.
"""

from __future__ import annotations

from typing import Callable

import paddle
from paddle.autograd import PyLayer


def bilinear(
    f: Callable[[paddle.Tensor, paddle.Tensor], paddle.Tensor], x: paddle.Tensor, w: paddle.Tensor
) -> paddle.Tensor:
    """f(x, w), differentiable twice.

    Args:
        f: linear in x and in w, made of Paddle's operators; only its first derivatives are used.
        x, w: tensors; one of them may be a constant.
    """
    return _Bilinear.apply(x, w, f)


class _Bilinear(PyLayer):
    @staticmethod
    def forward(ctx, x, w, f):
        ctx.save_for_backward(x, w)
        ctx.f, ctx.constant = f, (x.stop_gradient, w.stop_gradient)
        return f(x, w)

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensor()
        found = iter(_as_tuple(_Gradients.apply(x, w, g, ctx.f, ctx.constant)))
        return tuple(None if constant else next(found) for constant in ctx.constant)


class _Gradients(PyLayer):
    """(X(g, w), W(x, g)), or the one of them that is not of a constant."""

    @staticmethod
    def forward(ctx, x, w, g, f, constant):
        ctx.save_for_backward(x, w, g)
        ctx.f, ctx.constant, ctx.by_g = f, constant, not g.stop_gradient
        return tuple(_first(f, x, w, g, not constant[0], not constant[1]))

    @staticmethod
    def backward(ctx, *vectors):
        x, w, g = ctx.saved_tensor()
        vectors = iter(vectors)
        a, b = (None if constant else next(vectors) for constant in ctx.constant)
        by_x = by_w = by_g = None
        if a is not None and b is not None:
            [by_x] = _first(ctx.f, x, b, g, True, False)
            [by_w] = _first(ctx.f, a, w, g, False, True)
        if ctx.by_g:
            by_g = sum(
                ctx.f(*pair) for pair in ((a, w), (x, b)) if pair[0] is not None and pair[1] is not None
            )
        return tuple(
            None if constant else (paddle.zeros_like(tensor) if gradient is None else gradient)
            for tensor, gradient, constant in (
                (x, by_x, ctx.constant[0]),
                (w, by_w, ctx.constant[1]),
                (g, by_g, not ctx.by_g),
            )
        )


def _first(f, x, w, g, want_x, want_w):
    """The gradients of <f(x, w), g> that are wanted."""
    with paddle.enable_grad():
        x, w = x.detach(), w.detach()
        x.stop_gradient, w.stop_gradient = not want_x, not want_w
        # Not paddle.grad, which cannot be called while another paddle.grad runs.
        paddle.autograd.backward([f(x, w)], [g.detach()])
        return [tensor.grad for tensor in (x, w) if not tensor.stop_gradient]


def _as_tuple(value):
    return value if isinstance(value, (list, tuple)) else (value,)
