"""The four-block network in plain Paddle: what conv4.py computes, and what its tests hold it against.

It is the network of Finn et al. 2017, section 5.2, as the competition's reproduction wrote it. Paddle's own
operators have no second derivative here, and none for tasks side by side: it serves first order, one task
at a time.
"""

from __future__ import annotations

import paddle
import paddle.nn.functional as F

BLOCKS = 4
EPSILON = 1e-5  # of batch norm, as in Paddle's and PyTorch's layers


def plain_conv4(
    x: paddle.Tensor,
    params: list[paddle.Tensor],
    architecture: str = "pool",
    statistics_of: paddle.Tensor | None = None,
) -> paddle.Tensor:
    """Logits (N, n_way) of images x (N, C, H, W).

    Args:
        x: the images of one task.
        params: as `MAML.parameters()`: for each block the convolution's weight (width, C, 3, 3) and bias, the
            scale and the shift of batch norm; then the linear weight (features, n_way) and bias.
        architecture: "pool" for 2x2 max-pools, or "stride" for convolutions of stride 2 and the mean over the
            last map, see `MAML`.
        statistics_of: the images whose statistics batch norm uses; x itself by default.
    """
    other = statistics_of
    for block in range(BLOCKS):
        weight, bias, scale, shift = params[4 * block : 4 * block + 4]
        convolved = F.conv2d(x, weight, bias, stride=2 if architecture == "stride" else 1, padding=1)
        zeros = paddle.zeros_like(shift)
        if other is None:
            x = F.batch_norm(convolved, zeros, zeros + 1, scale, shift, training=True, epsilon=EPSILON)
        else:
            other = F.conv2d(other, weight, bias, stride=2 if architecture == "stride" else 1, padding=1)
            pixels = other.transpose([1, 0, 2, 3]).flatten(1)
            mean, variance = pixels.mean(axis=1), pixels.var(axis=1, unbiased=False)
            x = F.batch_norm(convolved, mean, variance, scale, shift, training=False, epsilon=EPSILON)
            other = F.batch_norm(other, mean, variance, scale, shift, training=False, epsilon=EPSILON)
        x, other = (images if images is None else F.relu(images) for images in (x, other))
        if architecture == "pool":
            x, other = (images if images is None else F.max_pool2d(images, 2) for images in (x, other))
    x = x.mean(axis=[2, 3]) if architecture == "stride" else x.flatten(1)
    return F.linear(x, params[-2], params[-1])
