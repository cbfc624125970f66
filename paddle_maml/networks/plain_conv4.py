"""The four-block network in plain Paddle: what conv4.py computes, and what its tests hold it against.

It is the network of Finn et al. 2017, section 5.2, as the competition's reproduction wrote it. Paddle's own
operators have no second derivative here, and none for tasks side by side: it serves first order, one task
at a time; and programs that `paddle.jit.save` writes.
"""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
from paddle import nn

BLOCKS = 4
EPSILON = 1e-5  # of batch norm, as in Paddle's and PyTorch's layers
_STRIDES = {"pool": 1, "stride": 2}


def plain_conv4(
    x: paddle.Tensor,
    params: list[paddle.Tensor],
    architecture: str = "pool",
    statistics_of: paddle.Tensor | None = None,
) -> paddle.Tensor:
    """Logits (N, n_way) of images x (N, C, H, W); arguments as of `plain_features`, and params end with the
    linear weight (features, n_way) and bias."""
    return F.linear(plain_features(x, params, architecture, statistics_of), params[-2], params[-1])


def plain_features(
    x: paddle.Tensor,
    params: list[paddle.Tensor],
    architecture: str = "pool",
    statistics_of: paddle.Tensor | None = None,
) -> paddle.Tensor:
    """Embeddings (N, features) of images x (N, C, H, W).

    Args:
        x: the images of one task.
        params: as `MAML.parameters()`: for each block the convolution's weight (width, C, 3, 3) and bias, the
            scale and the shift of batch norm.
        architecture: "pool" for 2x2 max-pools, or "stride" for convolutions of stride 2 and the mean over the
            last map, see `MAML`.
        statistics_of: the images whose statistics batch norm uses; x itself by default.
    """
    other, stride = statistics_of, _STRIDES[architecture]
    for block in range(BLOCKS):
        weight, bias, scale, shift = params[4 * block : 4 * block + 4]
        convolved = F.conv2d(x, weight, bias, stride=stride, padding=1)
        zeros = paddle.zeros_like(shift)
        if other is None and paddle.in_dynamic_mode():
            x = F.batch_norm(convolved, zeros, zeros + 1, scale, shift, training=True, epsilon=EPSILON)
        else:
            # In a program, which is saved, Paddle would make running statistics of a batch's.
            source = convolved if other is None else F.conv2d(other, weight, bias, stride=stride, padding=1)
            mean, variance = moments(source)
            x = F.batch_norm(convolved, mean, variance, scale, shift, training=False, epsilon=EPSILON)
            if other is not None:
                other = F.batch_norm(source, mean, variance, scale, shift, training=False, epsilon=EPSILON)
        x, other = (images if images is None else _reduced(images, architecture) for images in (x, other))
    return _features(x, architecture)


class FrozenConv4(nn.Layer):
    """The network with the weights and the batch statistics of one task: convolutions with bias, into which
    batch norm is folded, and a linear layer. An image's logits do not depend on others.

    Args:
        params: as of `plain_conv4`.
        statistics_of: the images whose statistics batch norm uses, (N, C, H, W).
        architecture: as of `plain_conv4`.
    """

    def __init__(self, params: list[paddle.Tensor], statistics_of: paddle.Tensor, architecture: str = "pool"):
        super().__init__()
        self.architecture, x = architecture, statistics_of
        self.convolutions = nn.LayerList()
        for block in range(BLOCKS):
            weight, _, scale, shift = params[4 * block : 4 * block + 4]
            width, channels = weight.shape[:2]
            convolution = nn.Conv2D(channels, width, 3, stride=_STRIDES[architecture], padding=1)
            self.convolutions.append(convolution)
            with paddle.no_grad():
                mean, variance = moments(F.conv2d(x, weight, None, stride=_STRIDES[architecture], padding=1))
                scale = scale * paddle.rsqrt(variance + EPSILON)
                convolution.weight.set_value(weight * scale.reshape([width, 1, 1, 1]))
                convolution.bias.set_value(shift - mean * scale)
                x = _reduced(convolution(x), architecture)
        self.linear = nn.Linear(*params[-2].shape)
        self.linear.weight.set_value(params[-2])
        self.linear.bias.set_value(params[-1])

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Logits (N, n_way) of images (N, C, H, W)."""
        for convolution in self.convolutions:
            x = _reduced(convolution(x), self.architecture)
        return self.linear(_features(x, self.architecture))


def moments(maps: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
    """Mean and variance of each channel of (N, C, H, W), two tensors (C,)."""
    pixels = maps.transpose([1, 0, 2, 3]).flatten(1)
    return pixels.mean(axis=1), pixels.var(axis=1, unbiased=False)


def _reduced(maps, architecture):
    """What follows a block's batch norm."""
    maps = F.relu(maps)
    return F.max_pool2d(maps, 2) if architecture == "pool" else maps


def _features(maps, architecture):
    return maps.mean(axis=[2, 3]) if architecture == "stride" else maps.flatten(1)
