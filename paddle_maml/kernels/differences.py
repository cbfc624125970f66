"""Hessian-vector products from first derivatives alone."""

from __future__ import annotations

import contextlib
from typing import Callable, Iterator

import paddle

# Of the parameters' length, by dtype. Rounding grows as the step shrinks; a longer step feels how the
# gradient bends, and above all crosses more kinks of ReLU and pooling, where the gradient jumps.
STEPS = {paddle.float64: 3e-8, paddle.float32: 1e-4}


@contextlib.contextmanager
def default_dtype(dtype: str | paddle.dtype) -> Iterator[None]:
    """Tensors that a network makes for itself are of that dtype inside."""
    before = paddle.get_default_dtype()
    paddle.set_default_dtype(dtype)
    try:
        yield
    finally:
        paddle.set_default_dtype(before)


def floating(tensor: paddle.Tensor, dtype: str | paddle.dtype) -> paddle.Tensor:
    """The tensor in a floating dtype, if it is floating; whole numbers stay."""
    same = not paddle.is_floating_point(tensor) or tensor.dtype == paddle.to_tensor(0, dtype).dtype
    return tensor if same else tensor.astype(dtype)


def hessian_by_differences(
    gradient_at: Callable[[list[paddle.Tensor]], list[paddle.Tensor]],
    theta: list[paddle.Tensor],
    vectors: list[paddle.Tensor],
    step: float | None = None,
) -> list[paddle.Tensor]:
    """H v = (g(theta + e v) - g(theta - e v)) / 2e for each of T tasks, with two gradients.

    Args:
        gradient_at: the gradient g, from tensors (T, ...) to such tensors.
        theta: where, a list of tensors (T, ...).
        vectors: v, a list of tensors shaped as theta.
        step: the length of e v as a share of theta's; by default what suits the dtype.
    """
    step = step or STEPS[theta[0].dtype]
    with paddle.no_grad():
        length, reach = _length(vectors), _length(theta)
        still = length == 0
        e = step * paddle.where(reach > 0, reach, paddle.ones_like(reach))
        e = e / paddle.where(still, paddle.ones_like(length), length)
        scales = [e.reshape([-1] + [1] * (p.ndim - 1)) for p in theta]
        above = gradient_at([p + s * v for p, s, v in zip(theta, scales, vectors)])
        below = gradient_at([p - s * v for p, s, v in zip(theta, scales, vectors)])
        return [(a - b) / (2 * s) for a, b, s in zip(above, below, scales)]


def _length(tensors):
    """Euclidean length over all tensors, for each task (T,)."""
    return sum(paddle.square(t.flatten(1)).sum(axis=1) for t in tensors).sqrt()
