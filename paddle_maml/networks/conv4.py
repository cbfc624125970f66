"""The network of MAML on Omniglot, with its parameters as explicit arguments, and the same without its last
layer.

Four blocks of 3x3 convolution, batch norm with the statistics of the batch at hand, ReLU and a reduction to
half the size, then a linear layer (Finn et al. 2017, section 5.2; Vinyals et al. 2016). It is computed for T
tasks side by side, each with parameters of its own.
"""

from __future__ import annotations

import contextlib
import sys

import paddle
from paddle import nn

from ..kernels import native, operators
from ..kernels.convolution import Convolution, window_rows
from ..kernels.windows import TAPS, Windows
from .plain_conv4 import BLOCKS, EPSILON, FrozenConv4, plain_conv4, plain_features
from .task_network import Embedding


class _Block(nn.Layer):
    """The parameters of one block. Its arithmetic is in `MAML`, which may be given others."""

    def __init__(self, in_channels, width):
        super().__init__()
        shape = [width, in_channels, 3, 3]
        self.conv_weight = self.create_parameter(shape, default_initializer=nn.initializer.KaimingNormal())
        # Batch statistics remove whatever a bias adds: it is kept for the competition's parameter list, and
        # never added.
        self.conv_bias = self.create_parameter([width], is_bias=True)
        self.norm_weight = self.create_parameter([width], default_initializer=nn.initializer.Constant(1.0))
        self.norm_bias = self.create_parameter([width], is_bias=True)


class _Linear(nn.Layer):
    def __init__(self, features, n_way):
        super().__init__()
        self.weight = self.create_parameter(
            [features, n_way], default_initializer=nn.initializer.XavierNormal()
        )
        self.bias = self.create_parameter([n_way], is_bias=True)


class Conv4(nn.Layer):
    """The four blocks: what they make of an image is its embedding, `features` numbers.

    Batch norm uses the statistics of the images passed together, unless it is given those of others.

    Args:
        in_channels: channels C of an image.
        width: channels of every convolution.
        image_size: height and width of an image, in pixels.
        architecture: "pool", 2x2 max-pools and a linear layer on the last map (the usual network, and the
            competition's), or "stride", convolutions of stride 2 and the mean over the last map (Finn's for
            Omniglot).

    Raises:
        ValueError: a size is not positive, the image is too small for four reductions, or the architecture is
            unknown.
    """

    def __init__(
        self, in_channels: int = 1, width: int = 64, image_size: int = 28, architecture: str = "pool"
    ):
        super().__init__()
        for name, value in [("in_channels", in_channels), ("width", width), ("image_size", image_size)]:
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if architecture not in ("pool", "stride"):
            raise ValueError(f"architecture must be 'pool' or 'stride', not {architecture!r}")
        self.in_channels, self.width = in_channels, width
        self.image_size, self.architecture = image_size, architecture
        pool = architecture == "pool"
        self._windows = Windows(image_size, image_size, pool)
        self._convolutions = []  # that of the first block for its size alone: `_first_block` has the windows
        size = image_size
        for number in range(BLOCKS):
            self._convolutions.append(Convolution(size, size, pool))
            size, _ = self._convolutions[-1].out_size
            if size == 0:
                raise ValueError(f"image_size {image_size} is too small for four poolings; 16 is the least")
            self.add_sublayer(f"block{number + 1}", _Block(width if number else in_channels, width))
        self.theta_names = [
            f"block{number + 1}.{part}"
            for number in range(BLOCKS)
            for part in ("conv_weight", "norm_weight", "norm_bias")
        ]
        self.features = width if architecture == "stride" else width * size * size

    def forward(self, x: paddle.Tensor, params: list[paddle.Tensor] | None = None) -> paddle.Tensor:
        """Embeddings; of `MAML` the scores of the classes.

        Args:
            x: images (N, C, H, W), or (T, N, C, H, W) for T tasks. They count as constants: no gradient
                reaches them.
            params: tensors shaped and ordered as `parameters()`, with a leading T where x has one; the
                layer's own if None.

        Returns:
            Embeddings (N, features) or (T, N, features); logits (N, n_way) or (T, N, n_way).

        `paddle.jit.save` saves this: the network with its own weights, for (N, C, H, W), the statistics those
        of the images passed together.
        """
        if not paddle.in_dynamic_mode():
            return self._program(x)
        single = x.ndim == 4
        if single:
            x = x.unsqueeze(0)
        if params is None:
            theta = self.initial(tasks=x.shape[0])
        else:
            self._check_params(params, None if single else x.shape[0])
            theta = self.theta_of([p.unsqueeze(0) for p in params] if single else params)
        outputs = self.outputs(self.prepare(x), theta)
        return outputs.squeeze(0) if single else outputs

    def _program(self, x):
        """The outputs in a static graph, which knows none of the operators here."""
        if len(x.shape) == 5:
            raise ValueError(
                f"a program takes images of one task, (N, {self.in_channels}, {self.image_size}, "
                f"{self.image_size}), not of several"
            )
        return self._plain(x, self.parameters(), self.architecture)

    _plain = staticmethod(plain_features)

    # What follows is the protocol `TaskNetwork`. Theta holds the parameters that matter to the output, laid
    # out for the products of operators.py, so that nothing is transposed inside the inner loop. A gradient
    # step is the same in both layouts.

    exact, batch_statistics, together, inputs_together = True, True, 8, 150

    def initial(self, tasks: int) -> list[paddle.Tensor]:
        """theta_0: for each block the convolution (tasks, 9 * C, width), the scale and the shift of batch
        norm (tasks, 1, width); of `MAML` then the linear weight (tasks, features, n_way) and bias (tasks, 1,
        n_way)."""
        theta = self.theta_of([p.unsqueeze(0) for p in self.parameters()])
        for number in range(BLOCKS):
            # Batch statistics remove the convolution's bias: its gradient is zero, and not missing.
            theta[3 * number + 2] = theta[3 * number + 2] + 0.0 * self._biases()[number]
        # Repeated when they are laid out: the transposition of a large tensor is slow.
        return [p.expand([tasks] + p.shape[1:]) for p in theta]

    def theta_of(self, params: list[paddle.Tensor]) -> list[paddle.Tensor]:
        """Tensors as `parameters()`, with a leading T, as theta; the biases of the convolutions are
        dropped."""
        theta = []
        for number in range(BLOCKS):
            weight, _, scale, shift = params[4 * number : 4 * number + 4]
            tasks, width, channels = weight.shape[:3]
            theta.append(weight.transpose([0, 3, 4, 2, 1]).reshape([tasks, TAPS * channels, width]))
            theta += [scale.unsqueeze(1), shift.unsqueeze(1)]
        return theta

    def parameters_of(self, theta: list[paddle.Tensor]) -> list[paddle.Tensor]:
        """The inverse of `theta_of`, with the network's own biases of the convolutions."""
        params = []
        for number, bias in enumerate(self._biases()):
            weight, scale, shift = theta[3 * number : 3 * number + 3]
            tasks, rows, width = weight.shape
            kernel = weight.reshape([tasks, 3, 3, rows // TAPS, width]).transpose([0, 4, 3, 1, 2])
            bias = bias.detach().unsqueeze(0).expand([tasks, width])
            params += [kernel, bias, scale.squeeze(1), shift.squeeze(1)]
        return params

    def _biases(self):
        return [getattr(self, f"block{number + 1}").conv_bias for number in range(BLOCKS)]

    def prepare(self, x: paddle.Tensor) -> native.Prepared | tuple:
        """What the first block needs of images (T, N, C, H, W). It does not depend on the parameters, so one
        call serves all inner steps. The images count as constants: there is no gradient by them.

        What it returns decides how the network is computed: by the kernel in C where it can be used, else by
        Paddle's operators.
        """
        self._check_images(x)
        kernel = native.usable(self.width, self.in_channels, x.dtype) and native.problem(_tell) is None
        return native.prepare(x, self.architecture == "pool") if kernel else self._windows_of(x.detach())

    def _windows_of(self, x):
        """The 3x3 windows of the images, with their mean and covariance.

        Returns:
            (images N, portions for `operators.largest_product`, mean (T, 1, 9 * C), covariance (T, 9 * C, 9 *
            C)). The portions have 9 * C + 1 columns, the last of ones, for a shift in the weight's last row.
        """
        tasks, images, channels = x.shape[:3]
        rows = x.transpose([0, 1, 3, 4, 2]).reshape([tasks, -1, channels])
        pieces = window_rows(rows, self._windows, images)
        count = sum(piece.shape[1] for piece in pieces)
        mean = sum(operators.sum_rows(piece) for piece in pieces) / count
        centred = [piece - paddle.expand(mean, piece.shape) for piece in pieces]
        covariance = sum(operators.matmul(piece, piece, transpose_a=True) for piece in centred) / count
        portions = operators.row_portions(pieces[:4] if self.architecture == "pool" else pieces)
        return images, portions, mean[:, :, :-1], covariance[:, :-1, :-1]

    def outputs(self, prepared, theta: list[paddle.Tensor], statistics=None) -> paddle.Tensor:
        """Embeddings (T, N, features), of `MAML` logits (T, N, n_way)."""
        with contextlib.nullcontext() if statistics is None else paddle.no_grad():
            return self._embeddings(prepared, theta, statistics)[0]

    def statistics(self, prepared, theta: list[paddle.Tensor]) -> list[paddle.Tensor]:
        """Of the first block mean (T, 1, 9 * C) and covariance (T, 9 * C, 9 * C) of the pixels under the
        kernel, which do not depend on theta; of the others mean and variance (T, 1, width) of the
        convolution's output."""
        with paddle.no_grad():
            return self._embeddings(prepared, theta, None)[1]

    def neutral_statistics(self) -> list[paddle.Tensor]:
        """Statistics of one task that batch norm changes nothing by."""
        taps, dtype = TAPS * self.in_channels, self.parameters()[0].dtype
        first = [paddle.zeros([1, 1, taps], dtype), paddle.eye(taps, dtype=dtype).unsqueeze(0)]
        others = [make([1, 1, self.width], dtype) for make in (paddle.zeros, paddle.ones) * (BLOCKS - 1)]
        return first + others

    def _embeddings(self, prepared, theta, given):
        """Embeddings, and the statistics that batch norm used."""
        if isinstance(prepared, native.Prepared):
            maps, used = native.features(prepared, theta[: 3 * BLOCKS], given)
            tasks, images, *_, width = maps.shape
            rows = maps.reshape([tasks, -1, width])
        else:
            images, rows, used = self._blocks(prepared, theta, given)
        return self._flat(rows, images), used

    def _blocks(self, prepared, theta, given):
        """The number of images, the rows of the last map, and the statistics, by Paddle's operators."""
        images, portions, *own = prepared
        used = list(given[:2] if given else own)
        rows = self._first_block(portions, *used, *theta[:3])
        for number in range(1, BLOCKS):
            place = slice(2 * number, 2 * number + 2)
            rows, moments = self._block(
                rows, number, images, given and given[place], *theta[3 * number : 3 * number + 3]
            )
            used += moments
        return images, rows, used

    def _first_block(self, portions, mean, covariance, weight, scale, shift):
        # Mean and variance of a product with fixed windows follow from the windows' own, so batch norm is
        # known before the product and goes into its weight: no pass over the largest map of the network.
        variance = operators.sum_rows(weight * operators.matmul(covariance, weight))
        scale = scale * paddle.rsqrt(variance + EPSILON)
        weight = operators.scale_rows(weight, scale)
        shift = shift - operators.matmul(mean, weight)
        weight = paddle.concat([weight, shift], axis=1)
        return operators.largest_product(portions, weight)

    def _block(self, rows, number, images, moments, weight, scale, shift):
        # The pooling comes first: batch norm and ReLU are increasing, so it picks the same pixel, and they
        # have a quarter of the pixels left to do. Increasing is batch norm if its scale is not negative; the
        # sign goes into the convolution.
        sign = None
        if self.architecture == "pool":
            sign = (scale >= 0).astype(scale.dtype).detach() * 2.0 - 1.0
            weight, scale = operators.scale_rows(weight, sign), scale * sign
        pooled, mean, variance = operators.convolve(rows, weight, self._convolutions[number], images)
        used = [mean if sign is None else mean * sign, variance]
        if moments:
            used = moments
            mean, variance = moments[0] if sign is None else moments[0] * sign, moments[1]
        scale = scale * paddle.rsqrt(variance + EPSILON)
        return nn.functional.relu(operators.affine_rows(pooled, scale, shift - mean * scale)), used

    def _flat(self, rows, images):
        tasks, _, width = rows.shape
        maps = rows.reshape([tasks * images, -1, width])
        if self.architecture == "stride":
            pixels = maps.shape[1]
            return (operators.sum_rows(maps) / pixels).reshape([tasks, images, width])
        return maps.transpose([0, 2, 1]).reshape([tasks, images, -1])

    def _check_images(self, x):
        """ValueError unless x is floating point, (T, N, C, H, W) with the network's C, H and W."""
        if not paddle.is_floating_point(x):
            raise ValueError(f"images must be floating point, as `EpisodeBuilder` makes them, not {x.dtype}")
        expected = [self.in_channels, self.image_size, self.image_size]
        if x.ndim != 5 or x.shape[2:] != expected:
            raise ValueError(
                f"images must be (N, {', '.join(map(str, expected))}) with or without a leading axis of "
                f"tasks, not {tuple(x.shape)}"
            )

    def _check_params(self, params, tasks):
        own = self.parameters()
        if len(params) != len(own):
            raise ValueError(f"params must be {len(own)} tensors as in parameters(), not {len(params)}")
        for number, (given, parameter) in enumerate(zip(params, own)):
            expected = parameter.shape if tasks is None else [tasks] + parameter.shape
            if given.shape != expected:
                raise ValueError(
                    f"params[{number}] must have shape {tuple(expected)}, not {tuple(given.shape)}"
                )


class MAML(Conv4):
    """The convolutional classifier that MAML adapts: the blocks of `Conv4` and a linear layer.

    Batch norm always uses the statistics of the images passed together, in testing too, so the prediction for
    one query image depends on the others (transductive), as in the published code of MAML.

    Args:
        n_way: classes of a task.
        in_channels, width, image_size, architecture: as of `Conv4`.

    Raises:
        ValueError: n_way is not positive; and what `Conv4` raises.
    """

    def __init__(
        self,
        n_way: int = 5,
        in_channels: int = 1,
        width: int = 64,
        image_size: int = 28,
        architecture: str = "pool",
    ):
        super().__init__(in_channels, width, image_size, architecture)
        if n_way < 1:
            raise ValueError(f"n_way must be at least 1, not {n_way}")
        self.n_way = n_way
        self.theta_names += ["linear.weight", "linear.bias"]
        self.linear = _Linear(self.features, n_way)

    _plain = staticmethod(plain_conv4)

    def frozen(self, params: list[paddle.Tensor], statistics_of: paddle.Tensor) -> nn.Layer:
        """A plain layer with these parameters and batch norm fixed, see `TaskNetwork`."""
        return FrozenConv4(params, statistics_of, self.architecture)

    def theta_of(self, params: list[paddle.Tensor]) -> list[paddle.Tensor]:
        return super().theta_of(params) + [params[-2], params[-1].unsqueeze(1)]

    def parameters_of(self, theta: list[paddle.Tensor]) -> list[paddle.Tensor]:
        return super().parameters_of(theta) + [theta[-2], theta[-1].squeeze(1)]

    def embed(self, prepared, theta: list[paddle.Tensor], statistics=None) -> Embedding:
        """What the linear layer gets."""
        return Embedding(super().outputs(prepared, theta, statistics))

    def outputs(self, prepared, theta: list[paddle.Tensor], statistics=None) -> paddle.Tensor:
        known = isinstance(prepared, Embedding)
        features = (prepared if known else self.embed(prepared, theta, statistics)).features
        return operators.matmul(features, theta[-2]) + theta[-1]


def _tell(line):
    print(line, file=sys.stderr)
