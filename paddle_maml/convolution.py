"""The arithmetic of a 3x3 convolution of many tasks side by side: gathers of rows and matrix products, a block at a time.

`Convolution` is what operators.py makes a twice differentiable operator of. It has two kinds: `StridedConvolution` here, and in
winograd.py the one before a max-pool.
"""
import functools
import typing

import numpy as np
import paddle

from .windows import TAPS, Windows

# Rows that are gathered and multiplied at once. On a CPU a compromise, measured: fewer would stay in the cache from the gather to the
# last use, more would need fewer calls. On a GPU calls count, and the bound only limits memory (2^19 rows of 64 float32: 0.13 GB).
CPU_BLOCK_ROWS = 12288
GPU_BLOCK_ROWS = 1 << 19


class Block(typing.NamedTuple):
    """Images `first` to `last` of tasks `start` to `end`; of one task, or all images of some."""

    start: int
    end: int
    first: int
    last: int

    @property
    def tasks(self):
        """How many there are."""
        return self.end - self.start

    @property
    def images(self):
        """Images of each task."""
        return self.last - self.first

    def of(self, rows, images):
        """Its part of rows (T, images * pixels, C)."""
        pixels = rows.shape[1] // images
        # All rows of some tasks or some of one: contiguous either way, which Paddle sees only in the flat tensor.
        start = (self.start * images + self.first) * pixels
        return rows.flatten(0, 1)[start:start + self.tasks * self.images * pixels].reshape([self.tasks, -1, rows.shape[2]])


class Convolution:
    """3x3, padding 1, without bias. Activations are rows (T, N * H * W, C); weights (T, 9 * C, D), the taps in reading order, the channels
    of a tap together.

    Attributes:
        pixels: of one image's output, before a pooling.
        out_size: height and width, after the pooling if there is one.
    """

    def __init__(self, pixels, out_size, gathered):
        self.pixels, self.out_size = pixels, out_size
        self._gathered = gathered  # rows for one image

    def groups(self, tasks, images):
        """Lists of blocks, each list with all images of the same tasks."""
        each = self._gathered * images
        limit = CPU_BLOCK_ROWS if paddle.get_device() == "cpu" else GPU_BLOCK_ROWS
        together = max(1, limit // each)
        parts = -(-each // limit)
        step = -(-images // parts)
        return [[Block(t, min(tasks, t + together), i, min(images, i + step)) for i in range(0, images, step)]
                for t in range(0, tasks, together)]

    def transform(self, weight, flipped=False):
        """A weight as `output` takes it, or, flipped, as `gradient` does; the first axis is that of the tasks."""
        raise NotImplementedError

    def transpose_transform(self, by_weight):
        """From the gradient by the transformed flipped weight to that by the weight, (T, 9 * C, D)."""
        raise NotImplementedError

    def output(self, block, factors, images):
        """Sum over (rows, transformed weight) of their convolutions, for a block: the maps (tasks, pixels, D), in an order of their own."""
        raise NotImplementedError

    def gradient(self, block, terms, images):
        """The two gradients, summed over terms, for a block.

        Args:
            terms: (the gradient of the maps that `output` returns for the block, the transformed flipped weight, the input rows).

        Returns:
            By the input (tasks, images * H * W, C) and by the transformed flipped weight.
        """
        raise NotImplementedError

    def corners(self, maps, block):
        """Maps as the corners of the pooling windows: copies (tasks, pooled pixels, D), in reading order, that may be overwritten; without
        pooling the maps themselves."""
        return [maps]

    def from_corners(self, corners, block):
        """The transpose of `corners`: zeros where no pooling window is."""
        return corners[0]

    def sums(self, maps, block):
        """Sums over the pixels inside the map: (tasks, 1, D). A product with ones takes a fortieth of the time of a sum over an axis."""
        return paddle.matmul(paddle.ones([block.tasks, 1, maps.shape[1]], maps.dtype), maps)


class StridedConvolution(Convolution):
    """Of stride 2, with no pooling: one product of the pixels under the kernel with the taps, as it is defined.

    The gradient by the input is gathered from the products of the output's gradient with the taps, at most four for each pixel: as a
    convolution of the output's gradient it would be nine, most of them with zeros.

    Args:
        height, width: the input map, in pixels.
    """

    def __init__(self, height, width):
        self._windows = Windows(height, width, stride=2)
        pixels = int(np.prod(self._windows.out_size))
        super().__init__(pixels, self._windows.out_size, TAPS * pixels)

    def transform(self, weight, flipped=False):
        return weight

    def transpose_transform(self, by_weight):
        return by_weight

    def output(self, block, factors, images):
        total = None
        for rows, weight in factors:
            total = add_in_place(total, paddle.matmul(self._under_the_kernel(block, rows, images), weight[block.start:block.end]))
        return total

    def gradient(self, block, terms, images):
        products, by_weight = None, None
        for grad, weight, rows in terms:
            products = add_in_place(products, paddle.matmul(grad, weight[block.start:block.end], transpose_y=True))
            windows = self._under_the_kernel(block, rows, images)
            by_weight = add_in_place(by_weight, paddle.matmul(windows, grad, transpose_x=True))
        channels, by_rows = products.shape[2] // TAPS, None
        source = with_zeros(products.reshape([block.tasks, -1, channels]))
        for numbers in self._numbers(block).uses:
            by_rows = add_in_place(by_rows, paddle.gather(source, numbers))
        return by_rows.reshape([block.tasks, -1, channels]), by_weight

    def _under_the_kernel(self, block, rows, images):
        """(tasks, pixels, 9 * C)."""
        windows = paddle.gather(with_zeros(block.of(rows, images)), self._numbers(block).rows)
        return windows.reshape([block.tasks, -1, TAPS * rows.shape[2]])

    def _numbers(self, block):
        return _strided_numbers(self._windows, block.tasks, block.images, paddle.get_device())


def add_in_place(total, term):
    """total + term, where a total of None is nothing yet; total may be overwritten."""
    return term if total is None else total.add_(term)


def with_zeros(rows):
    """(T, n, C) as one list of rows, (T * n + 1, C), the last of zeros."""
    return paddle.concat([rows.flatten(0, 1), paddle.zeros([1, rows.shape[2]], rows.dtype)])


def of_tasks(numbers, size, tasks):
    """Numbers of the `size` rows of one task as a flat int32 tensor of those of all tasks; what points after the last row still does."""
    numbers = numbers.ravel()
    spread = np.where(numbers == size, tasks * size, numbers + np.arange(tasks)[:, None] * size)
    return paddle.to_tensor(spread.ravel().astype(np.int32))


def window_rows(rows, windows, images):
    """The pixels under the kernel and a one: (T, images * pixels, 9 * C + 1) for each piece of `windows`, of rows (T, images * H * W, C)."""
    tasks, _, channels = rows.shape
    outside = paddle.zeros([tasks, 1, channels], rows.dtype)
    source = paddle.concat([rows, outside, outside + 1], axis=1)
    pieces = [paddle.gather(source, numbers, axis=1).reshape([tasks, -1, (TAPS + 1) * channels])
              for numbers in _window_numbers(windows, images, paddle.get_device())]
    return [piece[:, :, :TAPS * channels + 1] for piece in pieces] if channels > 1 else pieces


@functools.lru_cache(maxsize=16)
def _window_numbers(windows, images, device):
    return [paddle.to_tensor(np.append(numbers, np.full([len(numbers), 1], windows.height * windows.width * images + 1, np.int32), axis=1).ravel())
            for numbers in windows.rows(images)]


class _StridedNumbers(typing.NamedTuple):
    rows: paddle.Tensor
    uses: list


# Blocks come in few sizes, and the networks of a program have few geometries.
@functools.lru_cache(maxsize=64)
def _strided_numbers(windows, tasks, images, device):
    [rows] = windows.rows(images)
    return _StridedNumbers(of_tasks(rows, images * windows.height * windows.width, tasks),
                           [of_tasks(numbers, rows.size, tasks) for numbers in windows.uses(images)])
