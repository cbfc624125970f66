"""Operators that can be differentiated twice.

The exact meta-gradient of MAML differentiates a gradient, and Paddle's own convolution, batch norm, max-pool, softmax and
batched product either have no second derivative on the CPU or none in every supported version. Each operator here has a
forward of fast stock kernels and a backward made of operators that can themselves be differentiated, so `paddle.grad(...,
create_graph=True)` followed by another `paddle.grad` gives the exact second derivative. A third is not offered.

Shapes: T tasks side by side, each with its own weights; activations are rows (T, n, C), one row a pixel (windows.py);
what is one number per task and channel is (T, 1, C).

Why the arithmetic is as it is (CPU, one thread, 14,700 rows of 64 float32, Paddle 3.3; milliseconds):

    what is done                                      time        instead of                          time
    conv: gather nine rows a pixel, product           1.4 + 6     conv2d                              9
    its weight gradient: input^T @ windows of d_out   7           windows of the input^T @ d_out      8 to 14
    sum over rows: product with ones                  0.13        sum(axis)                           5
    choice: product with a 0/1 mask                   0.4         paddle.where                        3.4
    2x2 max: maximum, and masks in the backward       1.3 + 3.5   gradient of paddle.maximum          17
    factor of a channel: repeated for the rows first  0.15 + 0.4  broadcast of (T, 1, C)              2.5
    rows in another order: gather                     0.1         transpose of a 4-D tensor           1.6
    adding tensors that fit the cache (1,000 rows)    0.01        the same share of 14,700 rows       0.03
"""
import numpy as np
import paddle
import paddle.nn.functional as F
from paddle.autograd import PyLayer

from .windows import TAPS

# Rows of gathered windows that are multiplied at once. On a CPU they should stay in the cache between gather and product;
# on a GPU the number of launches counts, and the bound only limits memory (2^18 rows of 576 float32: 0.6 GB).
CPU_BLOCK_ROWS = 2048
CPU_PRODUCT_ROWS = 2048
GPU_BLOCK_ROWS = 1 << 18


def _save(ctx, *inputs):
    """Keep the tensors that backward needs, and which of them are constants."""
    ctx.save_for_backward(*inputs)
    ctx.constant = [tensor.stop_gradient for tensor in inputs]


def _gradients(ctx, *formulas):
    """The gradients of the first inputs that were saved, each by a formula; Paddle wants None for a constant."""
    return tuple(None if constant else formula() for constant, formula in zip(ctx.constant, formulas))


# ---------------------------------------------------------------------------------------------------- products and sums


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
            lambda: matmul(b, grad, transpose_b, True) if transpose_a else matmul(grad, b, False, not transpose_b),
            lambda: matmul(grad, a, True, transpose_a) if transpose_b else matmul(a, grad, not transpose_a, False))


def matmul(a, b, transpose_a=False, transpose_b=False):
    """Batched matrix product: (T, m, k) and (T, k, n) to (T, m, n), either factor transposed on request."""
    return _Matmul.apply(a, b, transpose_a, transpose_b)


def _column_sums(rows):
    return paddle.matmul(paddle.ones([rows.shape[0], 1, rows.shape[1]], rows.dtype), rows)


def _repeat(value, rows):
    """A (T, 1, C) value for every row: the product of equal shapes is five times faster than the broadcast."""
    return paddle.expand(value, rows.shape)


class _SumRows(PyLayer):
    """Stock: a sum over an axis that takes forty times as long."""

    @staticmethod
    def forward(ctx, rows):
        ctx.count = rows.shape[1]
        return _column_sums(rows)

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


def sum_rows(rows):
    """Sum over the rows: (T, n, C) to (T, 1, C)."""
    return _SumRows.apply(rows)


class _ScaleRows(PyLayer):
    """rows * scale. Stock: the gradient of the broadcast is a sum(axis), which takes longer than all the rest."""

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
        return _gradients(ctx, lambda: _ScaleRows.apply(grad, scale), lambda: sum_rows(rows * grad), lambda: sum_rows(grad))


def scale_rows(rows, scale):
    """rows * scale with a scale (T, 1, C) for every channel."""
    return _ScaleRows.apply(rows, scale)


def affine_rows(rows, scale, shift):
    """rows * scale + shift with a scale and a shift (T, 1, C) for every channel."""
    return _AffineRows.apply(rows, scale, shift)


# ------------------------------------------------------------------------------------------------------- batch statistics


class _Moments(PyLayer):
    """Stock: F.batch_norm has a second derivative, but one that takes seconds."""

    @staticmethod
    def forward(ctx, *pieces):
        ctx.save_for_backward(*pieces)
        count = sum(piece.shape[1] for piece in pieces)
        mean = sum(_column_sums(piece) for piece in pieces) / count
        # The deviations first: mean(y^2) - mean(y)^2 would cancel where a map is nearly constant.
        variance = sum(_column_sums(paddle.square(piece - _repeat(mean, piece))) for piece in pieces) / count
        return mean, variance

    @staticmethod
    def backward(ctx, grad_mean, grad_variance):
        return _as_tuple(_MomentsGradient.apply(grad_mean, grad_variance, *ctx.saved_tensor()))


class _MomentsGradient(PyLayer):
    """d_y = d_mean / M + 2 / M * d_variance * (y - mean), with its own gradient in closed form."""

    @staticmethod
    def forward(ctx, grad_mean, grad_variance, *pieces):
        count = sum(piece.shape[1] for piece in pieces)
        mean = sum(_column_sums(piece) for piece in pieces) / count
        ctx.save_for_backward(grad_variance, *pieces)
        ctx.mean, ctx.count = mean, count
        scale, shift = grad_variance * (2.0 / count), grad_mean / count
        return tuple((piece - _repeat(mean, piece)).multiply_(_repeat(scale, piece)).add_(_repeat(shift, piece)) for piece in pieces)

    @staticmethod
    def backward(ctx, *grads):
        grad_variance, *pieces = ctx.saved_tensor()
        to_mean = sum(_column_sums(grad) for grad in grads) / ctx.count
        products = sum(_column_sums(grad * piece) for grad, piece in zip(grads, pieces))
        to_variance = products * (2.0 / ctx.count) - ctx.mean * to_mean * 2.0
        scale = grad_variance * (2.0 / ctx.count)
        shift = to_mean * scale
        return (to_mean, to_variance) + tuple((grad * _repeat(scale, grad)).subtract_(_repeat(shift, grad)) for grad in grads)


def moments(pieces):
    """Mean and biased variance, each (T, 1, C), over the rows of all pieces (T, n_i, C) together."""
    return _Moments.apply(*pieces)


# --------------------------------------------------------------------------------------------------------------- pooling


# Of equal values the first in reading order is the largest. On a flat background all four are equal, and a mask of "equal to the
# maximum" would send the gradient to each of them.


def _largest(values):
    """The maximum of one tensor, or of the four corners 00, 01, 10, 11 of every window."""
    if len(values) == 1:
        return values[0]
    return paddle.maximum(paddle.maximum(values[0], values[1]), paddle.maximum(values[2], values[3]))


def _is_first(a, b):
    """1 where a is the larger of the two, else 0, in a's dtype."""
    return (a >= b).astype(a.dtype)


def _route(grad, values):
    """The gradient of `_largest`, which is 0 but for the largest, for each value."""
    if len(values) == 1:
        return [grad]
    y00, y01, y10, y11 = values
    top = _is_first(paddle.maximum(y00, y01), paddle.maximum(y10, y11)).multiply_(grad)
    bottom = grad - top
    g00, g10 = _is_first(y00, y01).multiply_(top), _is_first(y10, y11).multiply_(bottom)
    return [g00, top.subtract_(g00), g10, bottom.subtract_(g10)]


def _select(choices, values):
    """Of four choices the one whose value is the largest: what `_route` is the transpose of."""
    if len(values) == 1:
        return choices[0]
    y00, y01, y10, y11 = values
    u00, u01, u10, u11 = choices
    top = (u00 - u01).multiply_(_is_first(y00, y01)).add_(u01)
    bottom = (u10 - u11).multiply_(_is_first(y10, y11)).add_(u11)
    in_top = _is_first(paddle.maximum(y00, y01), paddle.maximum(y10, y11))
    return top.subtract_(bottom).multiply_(in_top).add_(bottom)


class _MaxOfFour(PyLayer):
    @staticmethod
    def forward(ctx, *values):
        ctx.save_for_backward(*values)
        return _largest(values)

    @staticmethod
    def backward(ctx, grad):
        # Which is the largest does not change with an infinitesimal step, so the values count as constants.
        return _as_tuple(_RouteOfFour.apply(grad, *[value.detach() for value in ctx.saved_tensor()]))


class _RouteOfFour(PyLayer):
    @staticmethod
    def forward(ctx, grad, *values):
        ctx.values = values
        return tuple(_route(grad, values))

    @staticmethod
    def backward(ctx, *grads):
        return (_select(grads, ctx.values),) + (None,) * 4


def max_of_four(y00, y01, y10, y11):
    """2x2 max-pool, given the four corners of every window as four tensors of one shape. Stock: no second derivative."""
    return _MaxOfFour.apply(y00, y01, y10, y11)


class _LargestProduct(PyLayer):
    """Stock: the pooling has no second derivative."""

    @staticmethod
    def forward(ctx, weight, *pieces):
        ctx.save_for_backward(weight)
        ctx.pieces = pieces
        parts = []
        for block in _row_blocks(pieces[0]):
            parts.append(F.relu(_largest(_products(pieces, weight, block))).reshape([-1, weight.shape[2]]))
        return paddle.concat(parts).reshape([weight.shape[0], -1, weight.shape[2]])

    @staticmethod
    def backward(ctx, grad):
        [weight] = ctx.saved_tensor()
        return (_LargestProductGradient.apply(grad, weight.detach(), *ctx.pieces),) + (None,) * len(ctx.pieces)


class _LargestProductGradient(PyLayer):
    @staticmethod
    def forward(ctx, grad, weight, *pieces):
        ctx.weight, ctx.pieces = weight, pieces
        by_task = {}
        for block in _row_blocks(pieces[0]):
            products = _products(pieces, weight, block)
            positive = (_largest(products) > 0).astype(grad.dtype)
            routed = _route(positive.multiply_(_rows_of(grad, block)), products)
            for piece, part in zip(pieces, routed):
                product = paddle.matmul(_rows_of(piece, block), part, transpose_x=True)
                by_task[block[0]] = by_task[block[0]].add_(product) if block[0] in by_task else product
        return paddle.concat(list(by_task.values()))

    @staticmethod
    def backward(ctx, weight_grad):
        parts = []
        for block in _row_blocks(ctx.pieces[0]):
            products = _products(ctx.pieces, ctx.weight, block)
            chosen = _select(_products(ctx.pieces, weight_grad, block), products)
            positive = (_largest(products) > 0).astype(chosen.dtype)
            parts.append(positive.multiply_(chosen).reshape([-1, chosen.shape[2]]))
        by_grad = paddle.concat(parts).reshape([weight_grad.shape[0], -1, weight_grad.shape[2]])
        return (by_grad, None) + (None,) * len(ctx.pieces)


def _row_blocks(rows):
    """(first task, last task, first row, last row) of parts whose tensors, here with 64 columns, fit the cache together."""
    tasks, count, _ = rows.shape
    limit = CPU_PRODUCT_ROWS if paddle.get_device() == "cpu" else GPU_BLOCK_ROWS
    together = max(1, limit // count)
    step = -(-count // -(-count // limit))
    return [(t, min(tasks, t + together), r, min(count, r + step)) for t in range(0, tasks, together) for r in range(0, count, step)]


def _rows_of(rows, block):
    t, t_end, r, r_end = block
    return rows[t:t_end, r:r_end]


def _products(pieces, weight, block):
    return [paddle.matmul(_rows_of(piece, block), weight[block[0]:block[1]]) for piece in pieces]


def largest_product(pieces, weight):
    """relu(max over the pieces of piece @ weight): convolution, pooling and ReLU of the first layer in one.

    The products are the largest maps of the network. They are made again in the backward, a cacheful at a time, which is faster than
    to write them to memory and to read them back.

    Args:
        pieces: one or four (corners 00, 01, 10, 11) constant tensors (T, n, K).
        weight: (T, K, D).

    Returns:
        (T, n, D).
    """
    return _LargestProduct.apply(weight, *pieces)


# ----------------------------------------------------------------------------------------------------------- convolution


class WindowRows:
    """The row numbers of a `Windows` as tensors on the current device, in blocks for the products; made once and kept."""

    def __init__(self, windows):
        self.windows = windows
        self._kept = {}

    def blocks(self, tasks, images, backward=False):
        """For each piece a list of (first task, last task, first row, last row, row numbers)."""
        key = tasks, images, backward, str(paddle.get_device())
        if key not in self._kept:
            if backward:
                pieces = [self.windows.backward_rows(tasks, images)]
            else:
                pieces = self.windows.forward_rows(tasks, images)
            # The same tasks together in every piece, so that sums over the pieces match.
            limit = CPU_BLOCK_ROWS if paddle.get_device() == "cpu" else GPU_BLOCK_ROWS
            together = max(1, limit // max(rows.shape[1] for rows in pieces))
            self._kept[key] = [_blocks(rows, together, limit) for rows in pieces]
        return self._kept[key]

    def by_tap(self, tasks, channels):
        """The numbers of the rows of a (tasks, channels, 9, D) tensor in the order (tasks, 9, channels)."""
        key = tasks, channels, str(paddle.get_device())
        if key not in self._kept:
            numbers = np.arange(tasks * channels * TAPS, dtype=np.int32).reshape(tasks, channels, TAPS)
            self._kept[key] = paddle.to_tensor(numbers.transpose(0, 2, 1).reshape(-1))
        return self._kept[key]


def _blocks(rows, together, limit):
    tasks, count, _ = rows.shape
    step = -(-count // -(-count // limit))
    blocks = []
    for t in range(0, tasks, together):
        for r in range(0, count, step):
            t_end, r_end = min(tasks, t + together), min(count, r + step)
            blocks.append((t, t_end, r, r_end, paddle.to_tensor(rows[t:t_end, r:r_end].reshape(-1))))
    return blocks


class _AppendZeroRow(PyLayer):
    """Stock: the second derivative of a concatenation with a constant fails."""

    @staticmethod
    def forward(ctx, rows):
        return paddle.concat([rows, paddle.zeros([rows.shape[0], 1, rows.shape[2]], rows.dtype)], axis=1)

    @staticmethod
    def backward(ctx, grad):
        return _DropLastRow.apply(grad)


class _DropLastRow(PyLayer):
    @staticmethod
    def forward(ctx, rows):
        return rows[:, :-1].clone()

    @staticmethod
    def backward(ctx, grad):
        return _AppendZeroRow.apply(grad)


def append_zero_row(rows):
    """(T, n, C) to the form of windows.py, (T, n + 1, C): the padding of the next convolution."""
    return _AppendZeroRow.apply(rows)


def _gather(source, numbers, tasks):
    """Windows of a source (rows, C), as (tasks, n, 9 * C)."""
    return paddle.gather(source, numbers).reshape([tasks, -1, TAPS * source.shape[1]])


def _window_products(factors, blocks, count):
    """Sum over (rows, weight) of the windows of the rows times the weight: (T, count, D)."""
    factors = [(rows.reshape([-1, rows.shape[2]]), weight) for rows, weight in factors]
    products = []
    for t, t_end, _, _, numbers in blocks:
        product = None
        for source, weight in factors:
            term = paddle.matmul(_gather(source, numbers, t_end - t), weight[t:t_end])
            product = term if product is None else product.add_(term)
        products.append(product.reshape([-1, product.shape[2]]))
    product = products[0] if len(products) == 1 else paddle.concat(products)
    return product.reshape([-1, count, product.shape[1]])


class _Convolve(PyLayer):
    """Stock: F.conv2d can be differentiated twice, but tasks side by side are groups of it, which cannot on a CPU if a group has
    one channel, and which are slower."""

    @staticmethod
    def forward(ctx, rows, weight, plan, images):
        _save(ctx, rows, weight)
        ctx.geometry = plan, images
        return _convolve([(rows, weight)], plan, images)

    @staticmethod
    def backward(ctx, *grads):
        rows, weight = ctx.saved_tensor()
        by_rows, by_weight = _ConvolveGradient.apply(rows, weight, *ctx.geometry, *grads)
        return _gradients(ctx, lambda: by_rows, lambda: by_weight)


def _convolve(factors, plan, images):
    sizes = [images * size for size in plan.windows.piece_sizes]
    blocks = plan.blocks(factors[0][0].shape[0], images)
    return tuple(_window_products(factors, piece, size) for piece, size in zip(blocks, sizes))


class _ConvolveGradient(PyLayer):
    """The gradients of a convolution with respect to its input and its weight, from the pieces of its output's.

    Both come from the same windows of the output's gradient: (n, 9 * D) times the weight, tap by tap, for the input, and the
    input's rows times (n, 9 * D) for the weight. The product of windows of the input with the output's gradient would be the same
    weight gradient at twice the time.
    """

    @staticmethod
    def forward(ctx, rows, weight, plan, images, *pieces):
        ctx.save_for_backward(rows, weight, *pieces)
        ctx.geometry = plan, images
        return _convolve_gradient(rows, weight, plan, images, pieces)

    @staticmethod
    def backward(ctx, rows_grad, weight_grad):
        # Linear in the pieces, where the transpose is the convolution; and linear in weight and rows, crosswise. The padding row of
        # rows_grad is zero like that of rows, because what makes rows drops that row's gradient or never reads it.
        rows, weight, *pieces = ctx.saved_tensor()
        by_rows, by_weight = _convolve_gradient(rows_grad, weight_grad, *ctx.geometry, pieces)
        return (by_rows, by_weight) + _convolve([(rows_grad, weight), (rows, weight_grad)], *ctx.geometry)


def _convolve_gradient(rows, weight, plan, images, pieces):
    tasks, count, channels = rows.shape
    depth = weight.shape[2]
    # (T, 9 * C, D) to (T, 9 * D, C), tap by tap.
    transposed = weight.reshape([tasks, TAPS, channels, depth]).transpose([0, 1, 3, 2]).reshape([tasks, TAPS * depth, channels])
    flat = [piece.reshape([-1, depth]) for piece in pieces]
    source = paddle.concat(flat + [paddle.zeros([1, depth], rows.dtype)])
    by_rows, by_weight = [], {}
    [blocks] = plan.blocks(tasks, images, backward=True)
    for t, t_end, r, r_end, numbers in blocks:
        windows = _gather(source, numbers, t_end - t)
        by_rows.append(paddle.matmul(windows, transposed[t:t_end]).reshape([-1, channels]))
        product = paddle.matmul(rows[t:t_end, r:r_end], windows, transpose_x=True)
        by_weight[t] = by_weight[t].add_(product) if t in by_weight else product
    # (T, C, 9, D) to (T, 9, C, D) by a gather of whole rows, which takes a tenth of a transposition's time.
    by_tap = paddle.gather(paddle.concat(list(by_weight.values())).reshape([-1, depth]), plan.by_tap(tasks, channels))
    return paddle.concat(by_rows).reshape([tasks, count, channels]), by_tap.reshape([tasks, TAPS * channels, depth])


def _as_tuple(outputs):
    return tuple(outputs) if isinstance(outputs, (tuple, list)) else (outputs,)


def convolve(rows, weight, plan, images):
    """3x3 convolution of `images` images a task, without bias.

    Args:
        rows: (T, images * H * W + 1, C), the last row of a task zeros. Its gradient there is zero.
        weight: (T, 9 * C, D), the taps in reading order, the channels of a tap together.
        plan: the `WindowRows` of the layer.

    Returns:
        A tuple with a tensor (T, images * pixels, D) for each piece of `plan.windows`.
    """
    return _as_tuple(_Convolve.apply(rows, weight, plan, images))


def window_rows(rows, plan, images):
    """The windows themselves, (T, images * pixels, 9 * C) for each piece, of rows as for `convolve`: differentiable once."""
    tasks, _, channels = rows.shape
    source = rows.reshape([-1, channels])
    pieces = []
    for blocks in plan.blocks(tasks, images):
        gathered = [_gather(source, block[-1], 1).squeeze(0) for block in blocks]
        pieces.append(paddle.concat(gathered).reshape([tasks, -1, TAPS * channels]))
    return pieces


# ---------------------------------------------------------------------------------------------------------- cross-entropy


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


def cross_entropy(logits, targets):
    """Mean cross-entropy of each task, (T,), from logits (T, N, n_way) and one-hot targets of the same shape."""
    return _CrossEntropy.apply(logits, targets)
