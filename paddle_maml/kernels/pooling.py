"""Max-pooling that can be differentiated twice.

The stock operator chooses: it knows the largest element of every window. Gathering those is the result,
scattering is its gradient, and gathering again is the gradient of that. Of equal values the stock operator
chooses one, the first in reading order, so a tie counts once.
"""

from __future__ import annotations

from typing import Sequence

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from .gathering import gather


def _choose(x, choice):
    """Elements of x (N, C, H, W) by their place in the plane, as an integer tensor (N, C, h, w)."""
    planes, size = x.shape[0] * x.shape[1], x.shape[2] * x.shape[3]
    # A window without a largest element (all are NaN) has the place -1.
    places = paddle.clip(choice.astype("int64").reshape([planes, -1]), 0, size - 1)
    places = places + paddle.arange(planes, dtype="int64").unsqueeze(1) * size
    return gather(x.reshape([-1]), places.flatten()).reshape(choice.shape)


def _as_list(value, length):
    return [value] * length if isinstance(value, int) else list(value)


def _borders(padding, sizes, kernel, stride, channel_last):
    """Paddle's ways to write a padding as a list of (before, after), one for each axis of the image."""
    axes = len(sizes)
    if isinstance(padding, str) and padding.upper() == "SAME":
        totals = [max((-(-n // s) - 1) * s + k - n, 0) for n, k, s in zip(sizes, kernel, stride)]
        return [(total // 2, total - total // 2) for total in totals]
    if isinstance(padding, str):
        if padding.upper() != "VALID":
            raise ValueError(f"The padding of a pooling is {padding!r}; its words are 'SAME' and 'VALID'.")
        return [(0, 0)] * axes
    padding = _as_list(padding, axes)
    if not isinstance(padding[0], int):
        return [tuple(pair) for pair in (padding[1:-1] if channel_last else padding[2:])]
    if len(padding) == axes:
        return [(p, p) for p in padding]
    return list(zip(padding[::2], padding[1::2]))


def max_pool2d(
    x: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | str | Sequence = 0,
    ceil_mode: bool = False,
    data_format: str = "NCHW",
) -> Tensor:
    """The largest element of every window, as `F.max_pool2d`, with its arguments.

    Args:
        x: (N, C, H, W), or (N, H, W, C) with the data format "NHWC".
        ceil_mode: whether windows that reach beyond the lower and right border count.

    Returns:
        (N, C, h, w), or (N, h, w, C).
    """
    channel_last = data_format == "NHWC"
    if channel_last:
        x = x.transpose([0, 3, 1, 2])
    height, width = x.shape[2:]
    kernel = _as_list(kernel_size, 2)
    stride = kernel if stride is None else _as_list(stride, 2)
    borders = _borders(padding, [height, width], kernel, stride, channel_last)
    if ceil_mode:
        # As far as the last window reaches.
        lacking = [-(n + a + b - k) % s for n, k, s, (a, b) in zip(x.shape[2:], kernel, stride, borders)]
        borders = [(a, b + more) for (a, b), more in zip(borders, lacking)]
    if any(max(border) >= k for border, k in zip(borders, kernel)):
        raise ValueError(
            f"Max-pooling with kernel_size {kernel}, stride {stride}, padding {padding!r} and "
            f"ceil_mode={ceil_mode} has windows of padding alone on an image of {height} x {width}; "
            "choose less padding."
        )
    (top, bottom), (left, right) = borders
    with paddle.no_grad():
        # Padded here: next to the places Paddle takes neither unequal borders nor, in 2.6, ceil_mode.
        padded = F.pad(x, [left, right, top, bottom], value=-float("inf")) if any(sum(borders, ())) else x
        _, places = F.max_pool2d(padded, kernel, stride, return_mask=True)
        rows, columns = places // padded.shape[3] - top, places % padded.shape[3] - left
        places = rows * width + columns
    y = _choose(x, places)
    return y.transpose([0, 2, 3, 1]) if channel_last else y


def max_pool1d(
    x: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | str | Sequence = 0,
    ceil_mode: bool = False,
) -> Tensor:
    """The largest element of every window, as `F.max_pool1d`: (N, C, L) to (N, C, l)."""
    kernel = _as_list(kernel_size, 1)
    stride = kernel if stride is None else _as_list(stride, 1)
    [border] = _borders(padding, [x.shape[2]], kernel, stride, False)
    return max_pool2d(x.unsqueeze(2), [1] + kernel, [1] + stride, [0, 0, *border], ceil_mode).squeeze(2)


def adaptive_max_pool2d(x: Tensor, output_size: int | Sequence[int | None]) -> Tensor:
    """The largest element of h x w windows that cover (N, C, H, W), as `F.adaptive_max_pool2d`."""
    with paddle.no_grad():
        _, places = F.adaptive_max_pool2d(x, output_size, return_mask=True)
    return _choose(x, places)


def adaptive_max_pool1d(x: Tensor, output_size: int) -> Tensor:
    """The largest element of l windows that cover (N, C, L), as `F.adaptive_max_pool1d`."""
    return adaptive_max_pool2d(x.unsqueeze(2), [1] + _as_list(output_size, 1)).squeeze(2)
