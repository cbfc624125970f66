"""Normalisation that can be differentiated twice: means, variances and rsqrt, written out.

Paddle's layer norm and group norm have no second derivative, and that of its batch norm takes a hundred
times as long as this on a CPU. Under Paddle's composite gradients they have one, and it is wrong.
"""

from __future__ import annotations

import paddle
from paddle import Tensor


def _channels_first(x, data_format):
    """(N, ..., C) with the channels moved to the second axis; other formats have them there."""
    if data_format[-1] != "C" or x.ndim == 2:
        return x
    return x.transpose([0, x.ndim - 1] + list(range(1, x.ndim - 1)))


def _channels_back(x, data_format):
    if data_format[-1] != "C" or x.ndim == 2:
        return x
    return x.transpose([0] + list(range(2, x.ndim)) + [1])


def _standardise(x, epsilon):
    """Mean 0 and variance 1 over the last axis."""
    centred = x - x.mean(-1, keepdim=True)
    return centred * _inverse_deviation(centred.square().mean(-1, keepdim=True), epsilon)


def _inverse_deviation(variance, epsilon):
    # A tensor, because Paddle 2.6 would round a number that is added to single precision. Its own layers do
    # that in both versions; in float64 their outputs part from these by about 1e-8 epsilon / variance.
    return paddle.rsqrt(variance + paddle.full([1], epsilon, variance.dtype))


def _affine(x, weight, bias):
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def channel_moments(x: Tensor, data_format: str = "NCHW") -> tuple[Tensor, Tensor]:
    """Mean and biased variance of every channel over the batch and the image, each (C,)."""
    x = _channels_first(x, data_format)
    pixels = x.reshape([x.shape[0], x.shape[1], -1])
    # The last axis first: a mean over both axes at once takes Paddle twice as long.
    mean = pixels.mean(-1, keepdim=True).mean(0, keepdim=True)
    variance = (pixels - mean).square().mean(-1).mean(0)
    return mean.reshape([-1]), variance


def batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    epsilon: float,
    data_format: str = "NCHW",
) -> Tensor:
    """(x - mean) / sqrt(variance + epsilon) * weight + bias, with one number of each for every channel.

    Args:
        x: (N, C, ...), or (N, ..., C) with a data format that ends so.
        mean: (C,), from `channel_moments` in training, a running mean afterwards; so the variance.
    """
    x = _channels_first(x, data_format)
    pixels = x.reshape([x.shape[0], x.shape[1], -1])
    scale = _affine(_inverse_deviation(variance, epsilon), weight, None)
    normalised = _affine((pixels - mean.unsqueeze(1)) * scale.unsqueeze(1), None, _column(bias))
    return _channels_back(normalised.reshape(x.shape), data_format)


def _column(vector):
    return None if vector is None else vector.unsqueeze(1)


def layer_norm(
    x: Tensor, normalized_shape: list[int], weight: Tensor | None, bias: Tensor | None, epsilon: float
) -> Tensor:
    """Every sample normalised over the last axes, those of `normalized_shape`; weight and bias are flat."""
    kept = x.shape[: x.ndim - len(normalized_shape)]
    if x.shape[len(kept) :] != list(normalized_shape):
        raise ValueError(
            f"A layer norm over {list(normalized_shape)} got an input {list(x.shape)}, "
            "whose last axes are others; give it the shape it was built for."
        )
    return _affine(_standardise(x.reshape(kept + [-1]), epsilon), weight, bias).reshape(x.shape)


def group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    epsilon: float,
    data_format: str = "NCHW",
) -> Tensor:
    """Every sample normalised over groups of channels; one weight and one bias for every channel.

    With as many groups as channels this is instance norm.
    """
    x = _channels_first(x, data_format)
    pixels = _standardise(x.reshape([x.shape[0], groups, -1]), epsilon).reshape([x.shape[0], x.shape[1], -1])
    return _channels_back(_affine(pixels, _column(weight), _column(bias)).reshape(x.shape), data_format)
