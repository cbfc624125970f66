"""Operators that can be differentiated twice.

The exact meta-gradient of MAML differentiates a gradient, and Paddle's own convolution, batch norm, max-pool,
softmax and batched product either have no second derivative on the CPU or none in every supported version.
Each operator here has a forward of fast stock kernels and a backward made of operators that can themselves be
differentiated, so `paddle.grad(..., create_graph=True)` followed by another `paddle.grad` gives the exact
second derivative. A third is not offered. In Paddle 3.3 `paddle.grad` by some of the leaves alone fails in
every PyLayer: name all tensors that need a gradient, or call `backward()`.

Shapes: T tasks side by side, each with its own weights; activations are rows (T, n, C), one row a pixel
(windows.py); what is one number per task and channel is (T, 1, C). What the convolution computes is in
convolution.py.

What was learned of Paddle on a CPU (one thread, 3.3, microseconds; 980 rows of 64 float32 unless it says
otherwise):

    what is done                                            time       instead of
      time add, subtract, multiply                                 8          the same on 7,840 rows, for as
      many       27
    maximum, comparison                                     15         gradient of paddle.maximum
      over 100 a mask to float, and multiply                           37 + 9     relu's gradient;
      paddle.where             35; 200
    a channel's factor: expand it, then multiply            8 + 9      broadcast of (T, 1, C)
      196
    sum over rows: product with ones                        5          sum(axis)
          300
    four parts of a tensor: split, which copies             18         slices of 2.6, which later copy slowly
          280
    rows in another order: gather                           45         transpose of a 4-D tensor
          150
"""

from __future__ import annotations

import typing

import paddle
import paddle.nn.functional as F
from paddle import Tensor
from paddle.autograd import PyLayer

from .convolution import Convolution, add_in_place, column_sums

# Rows of the first layer that are multiplied at once: on a CPU what fits the cache.
CPU_PRODUCT_ROWS = 2048
GPU_PRODUCT_ROWS = 1 << 18


def _save(ctx, *inputs):
    """Keep the tensors that backward needs, and which of them are constants."""
    ctx.save_for_backward(*inputs)
    ctx.constant = [tensor.stop_gradient for tensor in inputs]


def _gradients(ctx, *formulas):
    """The gradients of the first inputs that were saved, each by a formula; Paddle wants None for a
    constant."""
    return tuple(None if constant else formula() for constant, formula in zip(ctx.constant, formulas))


# ----------------------------------------------------------------------------------------------------
# products and sums


class _Matmul(PyLayer):
    """a @ b over a leading axis of tasks. Stock: its second derivative is missing in Paddle 2.6."""

    @staticmethod
    def forward(ctx, a, b, transpose_a, transpose_b):
        _save(ctx, a, b)
        ctx.transposed = transpose_a, transpose_b
        return paddle.matmul(a, b, transpose_a, transpose_b)

    @staticmethod
    def backward(ctx, grad):
        a, b = ctx.saved_tensor()
        transpose_a, transpose_b = ctx.transposed
        return _gradients(
            ctx,
            lambda: (
                matmul(b, grad, transpose_b, True) if transpose_a else matmul(grad, b, False, not transpose_b)
            ),
            lambda: (
                matmul(grad, a, True, transpose_a) if transpose_b else matmul(a, grad, not transpose_a, False)
            ),
        )


def matmul(a: Tensor, b: Tensor, transpose_a: bool = False, transpose_b: bool = False) -> Tensor:
    """Batched matrix product: (T, m, k) and (T, k, n) to (T, m, n), either factor transposed on request."""
    return _Matmul.apply(a, b, transpose_a, transpose_b)


def _repeat(value, rows):
    """A (T, 1, C) value for every row: the product of equal shapes is five times faster than the
    broadcast."""
    return paddle.expand(value, rows.shape)


class _SumRows(PyLayer):
    """Stock: a sum over an axis, which takes sixty times as long."""

    @staticmethod
    def forward(ctx, rows):
        ctx.count = rows.shape[1]
        return column_sums(rows)

    @staticmethod
    def backward(ctx, grad):
        return _SpreadRows.apply(grad, ctx.count)


class _SpreadRows(PyLayer):
    @staticmethod
    def forward(ctx, value, count):
        return paddle.expand(value, [value.shape[0], count, value.shape[2]])

    @staticmethod
    def backward(ctx, grad):
        return _SumRows.apply(grad)


def sum_rows(rows: Tensor) -> Tensor:
    """Sum over the rows: (T, n, C) to (T, 1, C)."""
    return _SumRows.apply(rows)


class _ScaleRows(PyLayer):
    """rows * scale. Stock: the gradient of the broadcast is a sum(axis), which takes longer than all the
    rest."""

    @staticmethod
    def forward(ctx, rows, scale):
        _save(ctx, rows, scale)
        return rows * _repeat(scale, rows)

    @staticmethod
    def backward(ctx, grad):
        rows, scale = ctx.saved_tensor()
        return _gradients(ctx, lambda: _ScaleRows.apply(grad, scale), lambda: sum_rows(rows * grad))


class _AffineRows(PyLayer):
    @staticmethod
    def forward(ctx, rows, scale, shift):
        _save(ctx, rows, scale, shift)
        return (rows * _repeat(scale, rows)).add_(_repeat(shift, rows))

    @staticmethod
    def backward(ctx, grad):
        rows, scale, _ = ctx.saved_tensor()
        return _gradients(
            ctx, lambda: _ScaleRows.apply(grad, scale), lambda: sum_rows(rows * grad), lambda: sum_rows(grad)
        )


def scale_rows(rows: Tensor, scale: Tensor) -> Tensor:
    """rows * scale with a scale (T, 1, C) for every channel."""
    return _ScaleRows.apply(rows, scale)


def affine_rows(rows: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """rows * scale + shift with a scale and a shift (T, 1, C) for every channel."""
    return _AffineRows.apply(rows, scale, shift)


# ---------------------------------------------------------------------------------------------------- pooling


# Of equal values the first in reading order is the largest. On a flat background all four are equal, and a
# mask of "equal to the maximum" would send the gradient to each of them.


def _pool(values):
    """The maximum of the four corners 00, 01, 10, 11 of every window, and what `_route` needs; of one tensor,
    itself."""
    if len(values) == 1:
        return values[0], None
    y00, y01, y10, y11 = values
    top, bottom = paddle.maximum(y00, y01), paddle.maximum(y10, y11)
    return paddle.maximum(top, bottom), (y00 >= y01, y10 >= y11, top >= bottom)


def _route(grad, choice):
    """The gradient of the maximum for each corner: it goes to the corner that was chosen."""
    if choice is None:
        return [grad]
    first_of_top, first_of_bottom, in_top = [mask.astype(grad.dtype) for mask in choice]
    top = in_top.multiply_(grad)
    bottom = grad - top
    g00, g10 = first_of_top.multiply_(top), first_of_bottom.multiply_(bottom)
    return [g00, top.subtract_(g00), g10, bottom.subtract_(g10)]


def _select(values, choice):
    """Of the values at the corners the chosen one: what `_route` is the transpose of. The values are
    overwritten."""
    if choice is None:
        return values[0].clone()
    u00, u01, u10, u11 = values
    first_of_top, first_of_bottom, in_top = [mask.astype(u00.dtype) for mask in choice]
    top = u00.subtract_(u01).multiply_(first_of_top).add_(u01)
    bottom = u10.subtract_(u11).multiply_(first_of_bottom).add_(u11)
    return top.subtract_(bottom).multiply_(in_top).add_(bottom)


class _LargestProduct(PyLayer):
    """Stock: the pooling has no second derivative."""

    @staticmethod
    def forward(ctx, weight, portions):
        largest, choices = [], []
        for portion, pieces in portions:
            value, choice = _pool([paddle.matmul(piece, weight[portion]) for piece in pieces])
            choices.append((choice, value > 0))
            largest.append(F.relu(value).flatten(0, 1))
        ctx.context = weight.shape, portions, choices
        return paddle.concat(largest).reshape([weight.shape[0], -1, weight.shape[2]])

    @staticmethod
    def backward(ctx, grad):
        # What is chosen and what is positive does not change with an infinitesimal step: no second derivative
        # by the weight.
        return _LargestProductGradient.apply(grad, *ctx.context)


class _LargestProductGradient(PyLayer):
    @staticmethod
    def forward(ctx, grad, shape, portions, choices):
        ctx.context = portions, choices
        flat, start, by_weight = grad.flatten(0, 1), 0, {}
        for (portion, pieces), (choice, positive) in zip(portions, choices):
            end = start + pieces[0].shape[0] * pieces[0].shape[1]
            part = flat[start:end].reshape([pieces[0].shape[0], -1, shape[2]])
            routed = _route(positive.astype(grad.dtype).multiply_(part), choice)
            for piece, values in zip(pieces, routed):
                product = paddle.matmul(piece, values, transpose_x=True)
                by_weight[portion.start] = add_in_place(by_weight.get(portion.start), product)
            start = end
        return paddle.concat(list(by_weight.values()))

    @staticmethod
    def backward(ctx, weight_grad):
        portions, choices = ctx.context
        by_grad = []
        for (portion, pieces), (choice, positive) in zip(portions, choices):
            chosen = _select([paddle.matmul(piece, weight_grad[portion]) for piece in pieces], choice)
            by_grad.append(positive.astype(chosen.dtype).multiply_(chosen).flatten(0, 1))
        return paddle.concat(by_grad).reshape([weight_grad.shape[0], -1, weight_grad.shape[2]])


def row_portions(pieces: list[Tensor]) -> list[tuple[slice, list[Tensor]]]:
    """Pieces for `largest_product`, cut to what fits the cache together when it has 64 columns.

    Args:
        pieces: one or four tensors (T, n, K).

    Returns:
        A list of (slice of tasks, list of tensors (tasks, rows, K)).
    """
    tasks, count, width = pieces[0].shape
    limit = CPU_PRODUCT_ROWS if paddle.get_device() == "cpu" else GPU_PRODUCT_ROWS
    together = max(1, limit // count)
    step = -(-count // -(-count // limit))
    portions = []
    for start in range(0, tasks, together):
        portion = slice(start, min(tasks, start + together))
        for row in range(0, count, step):
            # Reshaped, so that they have no gaps: Paddle would copy a slice that has anew in every product.
            portions.append(
                (
                    portion,
                    [
                        piece[portion, row : row + step].flatten().reshape([portion.stop - start, -1, width])
                        for piece in pieces
                    ],
                )
            )
    return portions


def largest_product(portions: list[tuple[slice, list[Tensor]]], weight: Tensor) -> Tensor:
    """relu(max over the pieces of piece @ weight): convolution, pooling and ReLU of the first layer in one.

    The products are the largest maps of the network, and they are never written to memory.

    Args:
        portions: one or four constant pieces (T, n, K), the corners 00, 01, 10, 11, as `row_portions` cuts
            them.
        weight: (T, K, D).

    Returns:
        (T, n, D).
    """
    return _LargestProduct.apply(weight, portions)


# -----------------------------------------------------------------------------------------------------------
# convolution


class _Maps(typing.NamedTuple):
    """The convolution's output for the tasks of one group, as deviations from `shift`, which is near the
    mean."""

    group: list  # of portions
    deviations: list  # one for each portion
    choices: list  # what `_pool` chose, for each portion
    offset: paddle.Tensor  # mean - shift


class _Convolve(PyLayer):
    """Stock: F.conv2d has a second derivative, but tasks side by side are groups of it, which a CPU lacks for
    groups of one channel, and which are slower; F.batch_norm's takes seconds; F.max_pool2d has none.

    One operator, so that a portion of the output is normalised, pooled and differentiated while it is in the
    cache.
    """

    @staticmethod
    def forward(ctx, rows, weight, convolution, images, differentiable):
        count = images * convolution.pixels
        pooled, means, variances, kept = [], [], [], []
        for group in convolution.groups(rows.shape[0], images):
            deviations, choices, shift, total, squares = [], [], None, None, None
            for portion in group:
                values = convolution.output(portion, [(rows, weight)], images)
                if shift is None:
                    shift = column_sums(values) / (portion.images * convolution.pixels)
                # Deviations from the first portion's mean, because mean(y^2) - mean(y)^2 would cancel where a
                # map is nearly constant.
                values = values.subtract_(_repeat(shift, values))
                total = add_in_place(total, column_sums(values))
                squares = add_in_place(squares, column_sums(paddle.square(values)))
                largest, choice = _pool(convolution.corners(values, portion))
                if differentiable:
                    deviations.append(values)
                    choices.append(choice)
                pooled.append((largest + _repeat(shift, largest)).flatten(0, 1))
            offset = total / count
            means.append(shift + offset)
            variances.append(squares / count - offset * offset)
            kept.append(_Maps(group, deviations, choices, offset))
        _save(ctx, rows, weight)
        ctx.context = convolution, images, kept
        return (
            paddle.concat(pooled).reshape([rows.shape[0], -1, weight.shape[2]]),
            paddle.concat(means),
            paddle.concat(variances),
        )

    @staticmethod
    def backward(ctx, *grads):
        wanted = iter(_ConvolveGradient.apply(*ctx.saved_tensor(), *grads, *ctx.context))
        return _gradients(ctx, lambda: next(wanted), lambda: next(wanted))


class _ConvolveGradient(PyLayer):
    """From the gradients of the pooled map, the mean and the variance, those by rows and weight: equations
    (1) and (2) in README.md. Of a constant there is none: Paddle 2.6 dies in the second derivative of an
    operator of which one output is not used."""

    @staticmethod
    def forward(ctx, rows, weight, pooled_grad, mean_grad, variance_grad, convolution, images, maps):
        _save(ctx, rows, weight, pooled_grad, mean_grad, variance_grad)
        ctx.context = convolution, images, maps
        by_rows, by_weight = [], []
        for part in maps:
            total = None
            for portion, grad in _map_gradients(
                part, pooled_grad, mean_grad, variance_grad, convolution, images
            ):
                by_input, by_taps = convolution.gradient(portion, [(grad, weight, rows)], images)
                by_rows.append(by_input.flatten(0, 1))
                total = add_in_place(total, by_taps)
            by_weight.append(total)
        wanted = _gradients(
            ctx,
            lambda: paddle.concat(by_rows).reshape(rows.shape),
            lambda: paddle.concat(by_weight),
        )
        return tuple(gradient for gradient in wanted if gradient is not None)

    @staticmethod
    def backward(ctx, *grads):
        rows, weight, pooled_grad, mean_grad, variance_grad = ctx.saved_tensor()
        given = iter(grads)
        rows_grad, weight_grad = (
            paddle.zeros_like(x) if constant else next(given)
            for x, constant in zip((rows, weight), ctx.constant)
        )
        convolution, images, maps = ctx.context
        # The numbers are those of the equations in README.md. (3): the change of y along (a, b), which are
        # rows_grad and weight_grad.
        factors = [(rows_grad, weight), (rows, weight_grad)]
        count = images * convolution.pixels
        by_rows, by_weight, by_pooled, by_mean, by_variance = [], [], [], [], []
        for part in maps:
            tangents, total, product, taps_total = [], None, None, None
            for portion, values, choice in zip(part.group, part.deviations, part.choices):
                tangent = convolution.output(portion, factors, images)
                total = add_in_place(total, column_sums(tangent))
                product = add_in_place(product, column_sums(tangent * values))
                by_pooled.append(
                    _select(convolution.corners(tangent, portion), choice).flatten(0, 1)
                )  # overwrites the copies
                tangents.append(tangent)
            mean = total / count
            by_mean.append(mean)  # (4), and by_pooled above
            by_variance.append((product / count - part.offset * mean) * 2.0)
            scale = variance_grad[portion.start : portion.end] * (2.0 / count)
            grads = _map_gradients(part, pooled_grad, mean_grad, variance_grad, convolution, images)
            for (portion, grad), tangent in zip(grads, tangents):
                # (5), then (6)
                change = tangent.subtract_(_repeat(mean, tangent)).multiply_(_repeat(scale, tangent))
                by_input, by_taps = convolution.gradient(
                    portion, [(grad, weight_grad, rows_grad), (change, weight, rows)], images
                )
                by_rows.append(by_input.flatten(0, 1))
                taps_total = add_in_place(taps_total, by_taps)
            by_weight.append(taps_total)
        return _gradients(
            ctx,
            lambda: paddle.concat(by_rows).reshape(rows.shape),
            lambda: paddle.concat(by_weight),
            lambda: paddle.concat(by_pooled).reshape(pooled_grad.shape),
            lambda: paddle.concat(by_mean),
            lambda: paddle.concat(by_variance),
        )


def _map_gradients(maps, pooled_grad, mean_grad, variance_grad, convolution, images):
    """Yield each portion with d_y."""
    tasks, count = slice(maps.group[0].start, maps.group[0].end), images * convolution.pixels
    scale = variance_grad[tasks] * (2.0 / count)
    shift = mean_grad[tasks] / count - maps.offset * scale
    for portion, values, choice in zip(maps.group, maps.deviations, maps.choices):
        routed = _route(portion.of(pooled_grad, images), choice)
        grad = (values * _repeat(scale, values)).add_(_repeat(shift, values))
        yield portion, grad.add_(convolution.from_corners(routed, portion))


def convolve(
    rows: Tensor, weight: Tensor, convolution: Convolution, images: int
) -> tuple[Tensor, Tensor, Tensor]:
    """3x3 convolution of `images` images a task, with the statistics that batch norm needs and, with a
    `Convolution` with pooling, 2x2 max-pooling.

    Args:
        rows: (T, images * H * W, C).
        weight: (T, 9 * C, D), the taps in reading order, the channels of a tap together.
        convolution: the layer's `Convolution`.

    Returns:
        The output after the pooling, (T, images * out_size[0] * out_size[1], D); mean and biased variance of
        it before the pooling, each (T, 1, D). A loss must depend on all three: Paddle 2.6 dies of a
        segmentation fault where one of a PyLayer's outputs has no gradient.
    """
    return tuple(_Convolve.apply(rows, weight, convolution, images, paddle.is_grad_enabled()))


# ----------------------------------------------------------------------------------------------------------
# cross-entropy


class _Softmax(PyLayer):
    """Stock: F.softmax and F.cross_entropy have no second derivative."""

    @staticmethod
    def forward(ctx, logits):
        # The input is kept and not the result: a node that holds its own output is never freed.
        ctx.save_for_backward(logits)
        return F.softmax(logits)

    @staticmethod
    def backward(ctx, grad):
        # The last derivative that is offered, so it need not be differentiable itself.
        [logits] = ctx.saved_tensor()
        probabilities = F.softmax(logits)
        product = grad * probabilities
        return product - probabilities * product.sum(axis=-1, keepdim=True)


class _CrossEntropy(PyLayer):
    @staticmethod
    def forward(ctx, logits, targets):
        ctx.save_for_backward(logits)
        ctx.targets = targets
        # Not F.log_softmax: on a CPU it cuts off at -64, and a loss above that would read 64, or less.
        shifted = logits - logits.max(axis=-1, keepdim=True)
        log_probabilities = shifted - shifted.exp().sum(axis=-1, keepdim=True).log()
        return -(log_probabilities * targets).sum(axis=-1).mean(axis=-1)

    @staticmethod
    def backward(ctx, grad):
        [logits] = ctx.saved_tensor()
        per_image = grad.reshape([-1, 1, 1]) / logits.shape[1]
        return (_Softmax.apply(logits) - ctx.targets) * per_image, None


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of each task, (T,), from logits (T, N, n_way) and one-hot targets of the same
    shape."""
    return _CrossEntropy.apply(logits, targets)
