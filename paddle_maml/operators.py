"""Operators that can be differentiated twice.

The exact meta-gradient of MAML differentiates a gradient, and Paddle's own convolution, batch norm, max-pool, softmax and
batched product either have no second derivative on the CPU or none in every supported version. Each operator here has a
forward of fast stock kernels and a backward made of operators that can themselves be differentiated, so `paddle.grad(...,
create_graph=True)` followed by another `paddle.grad` gives the exact second derivative. A third is not offered.

Shapes: T tasks side by side, each with its own weights; activations are rows (T, n, C), one row a pixel (windows.py);
what is one number per task and channel is (T, 1, C).

Why the arithmetic is as it is (CPU, one thread, 14,700 rows of 64 float32):
    gather of nine rows a pixel 1.4 ms and product with (576, 64) 6 ms, where conv2d takes 9 ms forward and 21 backward;
    in blocks of a few thousand rows the gathered windows stay in the cache;
    a sum over rows is a product with ones, 0.13 ms, where sum(axis) takes 5 ms;
    a choice is a product with a 0/1 mask, 0.4 ms, where paddle.where takes 3.4 ms;
    a factor for each channel is repeated for every row first, 0.15 + 0.4 ms, where the broadcast of (T, 1, C) takes 2.5 ms.
"""
import paddle
import paddle.nn.functional as F
from paddle.autograd import PyLayer

from .windows import TAPS

# Rows of gathered windows that are multiplied at once. On a CPU they should stay in the cache between gather and product;
# on a GPU the number of launches counts, and the bound only limits memory (2^18 rows of 576 float32: 0.6 GB).
CPU_BLOCK_ROWS = 2048
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


def affine_rows(rows, scale, shift):
    """rows * scale + shift with a scale and a shift (T, 1, C) for every channel."""
    return _AffineRows.apply(rows, scale, shift)


# ------------------------------------------------------------------------------------------------------- batch statistics


class _Moments(PyLayer):
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
        scale = grad_variance * (2.0 / count)
        shift = grad_mean / count - mean * scale
        return tuple((piece * _repeat(scale, piece)).add_(_repeat(shift, piece)) for piece in pieces)

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


class _MaxOfFour(PyLayer):
    @staticmethod
    def forward(ctx, y00, y01, y10, y11):
        top, bottom = paddle.maximum(y00, y01), paddle.maximum(y10, y11)
        # Exactly one winner a window, the first in reading order: on a flat background all four are equal, and a mask of
        # "equal to the maximum" would count the gradient four times.
        in_top = (top >= bottom).astype(top.dtype)
        in_bottom = 1.0 - in_top
        m00 = (y00 >= y01).astype(top.dtype) * in_top
        m10 = (y10 >= y11).astype(top.dtype) * in_bottom
        ctx.winners = m00, in_top - m00, m10, in_bottom - m10
        return paddle.maximum(top, bottom)

    @staticmethod
    def backward(ctx, grad):
        return tuple(grad * winner for winner in ctx.winners)


def max_of_four(y00, y01, y10, y11):
    """2x2 max-pool, given the four corners of every window as four tensors of one shape. Stock: no second derivative."""
    return _MaxOfFour.apply(y00, y01, y10, y11)


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


def _blocks(rows, together, limit):
    tasks, count, _ = rows.shape
    step = -(-count // -(-count // limit))
    blocks = []
    for t in range(0, tasks, together):
        for r in range(0, count, step):
            t_end, r_end = min(tasks, t + together), min(count, r + step)
            blocks.append((t, t_end, r, r_end, paddle.to_tensor(rows[t:t_end, r:r_end].reshape(-1))))
    return blocks


def _with_zero_row(pieces):
    """The rows of all pieces and tasks below each other, and a row of zeros: what the padding of a window points to."""
    channels = pieces[0].shape[2]
    flat = [piece.reshape([-1, channels]) for piece in pieces]
    return paddle.concat(flat + [paddle.zeros([1, channels], flat[0].dtype)])


def _window_products(source, weight, blocks, count):
    """Gathered windows times the tasks' weights: (T, count, D)."""
    products = []
    for t, t_end, r, r_end, numbers in blocks:
        gathered = paddle.gather(source, numbers).reshape([t_end - t, r_end - r, weight.shape[1]])
        products.append(paddle.matmul(gathered, weight[t:t_end]).reshape([-1, weight.shape[2]]))
    product = products[0] if len(products) == 1 else paddle.concat(products)
    return product.reshape([weight.shape[0], count, weight.shape[2]])


def _transposed_taps(weight):
    """(T, 9 * C, D) to (T, 9 * D, C), tap by tap."""
    tasks, rows, depth = weight.shape
    by_tap = weight.reshape([tasks, TAPS, rows // TAPS, depth]).transpose([0, 1, 3, 2])
    return by_tap.reshape([tasks, TAPS * depth, rows // TAPS])


# A convolution is linear in its input and in its weight, and so are its two gradients: the three operators below are each
# other's derivatives, which makes every order of differentiation exact with no further formula.


class _Convolve(PyLayer):
    @staticmethod
    def forward(ctx, rows, weight, plan, images):
        _save(ctx, rows, weight)
        ctx.geometry = plan, images
        source = _with_zero_row([rows])
        blocks = plan.blocks(rows.shape[0], images)
        sizes = [images * size for size in plan.windows.piece_sizes]
        return tuple(_window_products(source, weight, piece, size) for piece, size in zip(blocks, sizes))

    @staticmethod
    def backward(ctx, *grads):
        rows, weight = ctx.saved_tensor()
        return _gradients(ctx, lambda: _ConvolveToInput.apply(weight, *ctx.geometry, *grads),
                          lambda: _ConvolveToWeight.apply(rows, *ctx.geometry, *grads))


class _ConvolveToInput(PyLayer):
    """The gradient of a convolution with respect to its input, from the pieces of its output's."""

    @staticmethod
    def forward(ctx, weight, plan, images, *pieces):
        ctx.save_for_backward(weight, *pieces)
        ctx.geometry = plan, images
        [blocks] = plan.blocks(weight.shape[0], images, backward=True)
        count = images * plan.windows.height * plan.windows.width
        return _window_products(_with_zero_row(pieces), _transposed_taps(weight), blocks, count)

    @staticmethod
    def backward(ctx, grad):
        weight, *pieces = ctx.saved_tensor()
        outputs = _Convolve.apply(grad, weight, *ctx.geometry)
        return (_ConvolveToWeight.apply(grad, *ctx.geometry, *pieces),) + _as_tuple(outputs)


class _ConvolveToWeight(PyLayer):
    """The gradient of a convolution with respect to its weight, from its input and the pieces of its output's gradient."""

    @staticmethod
    def forward(ctx, rows, plan, images, *pieces):
        ctx.save_for_backward(rows, *pieces)
        ctx.geometry = plan, images
        tasks, _, channels = rows.shape
        source = _with_zero_row([rows])
        sums = [None] * tasks
        for piece, blocks in zip(pieces, plan.blocks(tasks, images)):
            for t, t_end, r, r_end, numbers in blocks:
                gathered = paddle.gather(source, numbers).reshape([t_end - t, r_end - r, TAPS * channels])
                product = paddle.matmul(gathered, piece[t:t_end, r:r_end], transpose_x=True)
                sums[t] = product if sums[t] is None else sums[t] + product
        return paddle.concat([part for part in sums if part is not None])

    @staticmethod
    def backward(ctx, grad):
        rows, *pieces = ctx.saved_tensor()
        outputs = _Convolve.apply(rows, grad, *ctx.geometry)
        return (_ConvolveToInput.apply(grad, *ctx.geometry, *pieces),) + _as_tuple(outputs)


def _as_tuple(outputs):
    return tuple(outputs) if isinstance(outputs, (tuple, list)) else (outputs,)


def convolve(rows, weight, plan, images):
    """3x3 convolution of `images` images a task, without bias.

    Args:
        rows: (T, images * H * W, C).
        weight: (T, 9 * C, D), the taps in reading order, the channels of a tap together.
        plan: the `WindowRows` of the layer.

    Returns:
        A tuple with a tensor (T, images * pixels, D) for each piece of `plan.windows`.
    """
    return _as_tuple(_Convolve.apply(rows, weight, plan, images))


def window_rows(rows, plan, images):
    """The windows themselves, (T, images * pixels, 9 * C) for each piece, of rows (T, images * H * W, C): differentiable once."""
    source = _with_zero_row([rows])
    tasks, _, channels = rows.shape
    pieces = []
    for blocks, size in zip(plan.blocks(tasks, images), plan.windows.piece_sizes):
        gathered = [paddle.gather(source, block[-1]).reshape([-1, TAPS * channels]) for block in blocks]
        pieces.append(paddle.concat(gathered).reshape([tasks, images * size, TAPS * channels]))
    return pieces


# ---------------------------------------------------------------------------------------------------------- cross-entropy


class _Softmax(PyLayer):
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
