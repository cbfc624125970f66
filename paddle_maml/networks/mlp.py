"""A perceptron, computed for T tasks side by side, each with parameters of its own.

Finn et al. 2017 use two: for Omniglot without convolutions four hidden layers of 256, 128, 64 and 64 units,
each with batch norm and ReLU (section 5.2); for sinusoids two of 40 units with ReLU alone (section 5.1).
"""

from __future__ import annotations

import contextlib
import math

import paddle
from paddle import nn
from paddle.nn.initializer import Constant, TruncatedNormal

from ..kernels.operators import affine_rows, matmul, sum_rows
from .task_network import Embedding

EPSILON = 1e-5  # of batch norm, as in Paddle's and PyTorch's layers
WEIGHT_DEVIATION = 0.01


class _Linear(nn.Layer):
    def __init__(self, in_features, out_features):
        super().__init__()
        self.weight = self.create_parameter(
            [in_features, out_features], default_initializer=TruncatedNormal()
        )
        # Scaled here: Paddle 2.6 cuts off at two deviations, Paddle 3 at +-2 whatever the deviation is.
        self.weight.set_value(self.weight * WEIGHT_DEVIATION)
        self.bias = self.create_parameter([out_features], is_bias=True)


class _Norm(nn.Layer):
    def __init__(self, features):
        super().__init__()
        self.weight = self.create_parameter([features], default_initializer=Constant(1.0))
        self.bias = self.create_parameter([features], is_bias=True)


class MLP(nn.Layer):
    """A perceptron: each hidden layer is linear, batch norm, ReLU; the last layer is linear.

    Batch norm always uses the statistics of the inputs passed together, in testing too (transductive). It
    takes out again what a bias before it adds: those biases are kept for the list of parameters of Finn et
    al.'s code, and never added.

    The weights begin as in that code: normal with deviation 0.01, cut off at two deviations; the biases at 0.
    Batch norm here has a scale and a shift, both adapted; in that code it has the shift alone, which the
    inner loop leaves as it is.

    Args:
        in_features: numbers of an input, such as 784 for an image of 28x28.
        hidden: units of each hidden layer.
        n_outputs: outputs, such as the classes of a task.
        batch_norm: whether the hidden layers have batch norm.

    Raises:
        ValueError: a size is below 1.
    """

    exact, together, inputs_together = True, 32, None  # see `TaskNetwork`

    def __init__(
        self,
        in_features: int,
        hidden: tuple[int, ...] = (256, 128, 64, 64),
        n_outputs: int = 5,
        batch_norm: bool = True,
    ):
        super().__init__()
        sizes = [in_features, *hidden, n_outputs]
        names = ["in_features"] + ["a hidden layer"] * len(hidden) + ["n_outputs"]
        for name, size in zip(names, sizes):
            if size < 1:
                raise ValueError(f"{name} must be at least 1, not {size}")
        self.in_features, self.hidden, self.n_outputs = in_features, tuple(hidden), n_outputs
        self.batch_norm = self.batch_statistics = batch_norm
        for number, (before, after) in enumerate(zip(sizes, sizes[1:]), 1):
            self.add_sublayer(f"linear{number}", _Linear(before, after))
            if batch_norm and number <= len(hidden):
                self.add_sublayer(f"norm{number}", _Norm(after))
        idle = [f"linear{number}.bias" for number in range(1, len(hidden) + 1)] if batch_norm else []
        #: The parameters that matter to the outputs, one for each tensor of theta.
        self.theta_names = [name for name, _ in self.named_parameters() if name not in idle]

    def forward(self, x: paddle.Tensor, params: list[paddle.Tensor] | None = None) -> paddle.Tensor:
        """Outputs.

        Args:
            x: inputs (N, ...) with `in_features` numbers each, or (T, N, ...) for T tasks. Without `params`,
                x is taken as (N, ...) where it can be both.
            params: tensors shaped and ordered as `parameters()`, with a leading T where x has one; the
                layer's own if None.

        Returns:
            (N, n_outputs) or (T, N, n_outputs).

        Raises:
            ValueError: inputs or parameters of another shape.

        `paddle.jit.save` saves this for inputs (N, ...), as of `MAML`.
        """
        if not paddle.in_dynamic_mode():
            return _plain(x, self._layers(self.parameters()))[0]
        if params is None:
            single = x.ndim > 1 and math.prod(x.shape[1:]) == self.in_features
        else:
            single = params[0].ndim == self.parameters()[0].ndim
        prepared = self.prepare(x.unsqueeze(0) if single else x)
        if params is None:
            theta = self.initial(prepared.shape[0])
        else:
            params = [p.unsqueeze(0) for p in params] if single else params
            given = [tuple(p.shape) for p in params]
            expected = [(prepared.shape[0], *p.shape) for p in self.parameters()]
            if given != expected:
                raise ValueError(
                    "params must be shaped as parameters(), with a leading axis of tasks where the inputs "
                    f"have one, {[shape[single:] for shape in expected]}, "
                    f"not {[shape[single:] for shape in given]}"
                )
            theta = self.theta_of(params)
        outputs = self.outputs(prepared, theta)
        return outputs.squeeze(0) if single else outputs

    # What follows makes it a `TaskNetwork`.

    def prepare(self, x: paddle.Tensor) -> paddle.Tensor:
        """Inputs (T, N, ...) as rows (T, N, in_features). Raises ValueError for another number."""
        if not paddle.is_floating_point(x) or x.ndim < 3 or math.prod(x.shape[2:]) != self.in_features:
            raise ValueError(
                f"inputs must be floating point, (N, ...) of {self.in_features} numbers, or with a leading "
                f"axis of tasks, not {x.dtype} {tuple(x.shape)}"
            )
        return x.reshape([*x.shape[:2], self.in_features])

    def initial(self, tasks: int) -> list[paddle.Tensor]:
        """theta_0: the layer's own parameters for each of so many tasks, tensors (tasks, ...), those with one
        number for each unit (tasks, 1, units)."""
        theta = self.theta_of([p.unsqueeze(0) for p in self.parameters()])
        return [p.expand([tasks, *p.shape[1:]]) for p in theta]

    def outputs(
        self,
        prepared: paddle.Tensor | Embedding,
        theta: list[paddle.Tensor],
        statistics: list[paddle.Tensor] | None = None,
    ) -> paddle.Tensor:
        """Outputs (T, N, n_outputs) of prepared inputs, or of what `embed` made of them."""
        with contextlib.nullcontext() if statistics is None else paddle.no_grad():
            known = isinstance(prepared, Embedding)
            features = prepared.features if known else self._run(prepared, theta, statistics)[0]
            return matmul(features, theta[-2]) + theta[-1]

    def embed(self, prepared: paddle.Tensor, theta: list[paddle.Tensor]) -> Embedding:
        """What the last layer gets."""
        return Embedding(self._run(prepared, theta, None)[0])

    def statistics(self, prepared: paddle.Tensor, theta: list[paddle.Tensor]) -> list[paddle.Tensor]:
        """Mean and variance (T, 1, units) of each hidden layer with batch norm."""
        with paddle.no_grad():
            return self._run(prepared, theta, None)[1]

    def neutral_statistics(self) -> list[paddle.Tensor]:
        """Statistics of one task that batch norm changes nothing by."""
        shapes = [[1, 1, units] for units in self.hidden if self.batch_norm]
        dtype = self.parameters()[0].dtype
        return [make(shape, dtype) for shape in shapes for make in (paddle.zeros, paddle.ones)]

    def _run(self, rows, theta, given):
        """What the last layer gets, and the statistics that batch norm used."""
        theta, used = iter(theta), []
        for number in range(len(self.hidden)):
            rows = matmul(rows, next(theta))
            if self.batch_norm:
                moments = given and given[2 * number : 2 * number + 2]
                rows, moments = _normalise(rows, next(theta), next(theta), moments)
                used += moments
            else:
                bias = next(theta)
                rows = affine_rows(rows, paddle.ones_like(bias), bias)
            rows = nn.functional.relu(rows)
        return rows, used

    def frozen(self, params: list[paddle.Tensor], statistics_of: paddle.Tensor) -> nn.Layer:
        """A plain layer with these parameters and batch norm fixed, see `TaskNetwork`."""
        with paddle.no_grad():
            folded = _plain(statistics_of, self._layers(params))[1]
        layers = [nn.Flatten()]
        for weight, bias in folded:
            linear = nn.Linear(*weight.shape)
            linear.weight.set_value(weight)
            linear.bias.set_value(bias)
            layers += [linear, nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    def _layers(self, params):
        """(weight, bias, scale, shift) of each layer, as `_plain` takes them."""
        named = {name: p for (name, _), p in zip(self.named_parameters(), params)}
        return [
            [
                named.get(name)
                for name in (f"linear{number}.weight", f"linear{number}.bias", *_norm_names(number))
            ]
            for number in range(1, len(self.hidden) + 2)
        ]

    def parameters_of(self, theta: list[paddle.Tensor]) -> list[paddle.Tensor]:
        """Theta laid out as `parameters()`, with a leading T."""
        given = dict(zip(self.theta_names, theta))
        tasks = theta[0].shape[0]
        return [
            given[name].reshape([tasks, *p.shape]) if name in given else p.detach().expand([tasks, *p.shape])
            for name, p in self.named_parameters()
        ]

    def theta_of(self, params: list[paddle.Tensor]) -> list[paddle.Tensor]:
        """The inverse of `parameters_of`."""
        named = {name: p for (name, _), p in zip(self.named_parameters(), params)}
        chosen = [named[name] for name in self.theta_names]
        return [p.unsqueeze(1) if p.ndim == 2 else p for p in chosen]


def _normalise(rows, scale, shift, moments):
    """Batch norm of (T, N, C) with its own mean and variance or others; also returns these."""
    count = rows.shape[1]
    mean = moments[0] if moments else sum_rows(rows) / count
    # Deviations first: rows * scale + (shift - mean * scale) would cancel where a unit is nearly constant.
    rows = affine_rows(rows, paddle.ones_like(mean), -mean)
    variance = moments[1] if moments else sum_rows(rows * rows) / count
    return affine_rows(rows, scale * paddle.rsqrt(variance + EPSILON), shift), [mean, variance]


def _norm_names(number):
    return f"norm{number}.weight", f"norm{number}.bias"


def _plain(x, layers):
    """Outputs of inputs (N, ...) by Paddle's own operators, and the weight and bias of each layer with batch
    norm folded in.

    Args:
        layers: of each layer weight, bias, scale and shift; the last two None where it has no batch norm.
    """
    rows, folded = x.flatten(1), []
    for number, (weight, bias, scale, shift) in enumerate(layers, 1):
        if scale is not None:
            products = paddle.matmul(rows, weight)
            factor = scale * paddle.rsqrt(products.var(axis=0, unbiased=False) + EPSILON)
            weight, bias = weight * factor, shift - products.mean(axis=0) * factor
        folded.append((weight, bias))
        rows = nn.functional.linear(rows, weight, bias)
        rows = nn.functional.relu(rows) if number < len(layers) else rows
    return rows, folded
