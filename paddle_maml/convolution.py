"""The arithmetic of a 3x3 convolution of many tasks side by side: gathers of rows and matrix products, a block at a time.

A bilinear algorithm computes the pixels y of a tile from the input pixels x at its positions and the nine taps w as

    y = A [(G w) * (B x)],

with a product over the channels at each position. Winograd's F(2x2, 3x3) (Lavin & Gray 2016, "Fast algorithms for convolutional neural
networks", section 4.1) takes 16 products for the four pixels of a pooling window where the definition takes 36. The definition
itself is the algorithm with G = B = 1 and A = (1 .. 1): it serves strides. The constants are 0, 1, 1/2 and 1/4 and their negatives,
so that the result is that of the definition but for rounding.

At 14x14 pixels, 64 channels and 75 images that is 4.8 ms where gathering the nine pixels under the kernel for one product took
9.9, and 8.4 ms for both gradients where it took 18.7 (one thread, float32; two thirds of it are the products, at the speed of the
library that computes them).

Tiles of 4x4 pixels, F(4x4, 3x3), were tried for the maps of 7x7 and 3x3: what they save in products is lost in pooling the windows over
the edge, a meta-iteration takes as long, and the rounding is larger.

The gradient by the input is such a convolution of the output's gradient, with the taps in reverse order; the gradient by the taps
is, at each position, the product of A^T times the input's own pixels with what the former has gathered and multiplied by B.
"""
import functools
import typing

import numpy as np
import paddle

from .windows import TAPS, Tiles

# Rows that are gathered and multiplied at once. On a CPU a compromise, measured: fewer would stay in the cache from the gather to the
# last use, more would need fewer calls. On a GPU calls count, and the bound only limits memory (2^19 rows of 64 float32: 0.13 GB).
CPU_BLOCK_ROWS = 12288
GPU_BLOCK_ROWS = 1 << 19

_B = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
_G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
_A = np.array([[1, 1, 1, 0], [0, 1, -1, -1]])
# Of the two axes together; "flipped": the taps in reverse order.
_ALGORITHMS = {
    "winograd": {"B": np.kron(_B, _B), "G": np.kron(_G, _G), "G flipped": np.kron(_G, _G)[:, ::-1], "A": np.kron(_A, _A)},
    "definition": {"A": np.ones([1, TAPS])},
}


class Block(typing.NamedTuple):
    """Images `first` to `last` of tasks `start` to `end`; of one task, or all images of some."""

    start: int
    end: int
    first: int
    last: int

    @property
    def images(self):
        """Images of each task."""
        return self.last - self.first

    def of(self, rows, images):
        """Its part of rows (T, images * pixels, C)."""
        tasks, pixels = self.end - self.start, rows.shape[1] // images
        # All rows of some tasks or some of one: contiguous either way, which Paddle sees only in the flat tensor.
        start = (self.start * images + self.first) * pixels
        return rows.flatten(0, 1)[start:start + tasks * self.images * pixels].reshape([tasks, -1, rows.shape[2]])


class Convolution:
    """3x3, padding 1, without bias.

    Args:
        height, width, stride, pool: as for `Tiles`; `pool` only arranges the output for a 2x2 max-pool.

    Activations are rows (T, N * H * W, C); weights (T, 9 * C, D), the taps in reading order, the channels of a tap together.
    """

    def __init__(self, height, width, stride=1, pool=False):
        self.tiles = Tiles(height, width, stride, pool)
        #: Pixels of one image's output, before the pooling.
        self.pixels = self.tiles.conv_size[0] * self.tiles.conv_size[1]
        self._algorithm = "winograd" if pool else "definition"

    def groups(self, tasks, images):
        """Lists of blocks, each list with all images of the same tasks."""
        each = self.tiles.positions * self.tiles.tiles(images)
        limit = CPU_BLOCK_ROWS if paddle.get_device() == "cpu" else GPU_BLOCK_ROWS
        together = max(1, limit // each)
        parts = -(-each // limit)
        step = -(-images // parts)
        return [[Block(t, min(tasks, t + together), i, min(images, i + step)) for i in range(0, images, step)]
                for t in range(0, tasks, together)]

    def transform(self, weight, name="G"):
        """G w at each position: (T, positions, C, D)."""
        tasks, rows, depth = weight.shape
        return self._times(name, weight.reshape([tasks, TAPS, -1])).reshape([tasks, self.tiles.positions, rows // TAPS, depth])

    def output(self, block, factors, images):
        """Sum over (rows, transformed weight) of their convolutions, for a block: (tasks, pixels of all tiles, D)."""
        numbers, total = self._numbers(block, factors[0][0].dtype), None
        for rows, transformed in factors:
            windows = self._windows(block.of(rows, images), numbers.rows)
            total = add_in_place(total, paddle.matmul(windows, transformed[block.start:block.end]))
        return self._pixels(total)

    def gradient(self, block, terms, images):
        """The two gradients, summed over terms, for a block.

        Args:
            terms: (the output's gradient as `output` returns it for the block, the transformed flipped weight, the input rows).

        Returns:
            By the input (tasks, images * H * W, C) and by the transformed flipped weight (tasks, positions, C, D).
        """
        numbers, products, by_weight = self._numbers(block, terms[0][0].dtype), None, None
        for grad, transformed, rows in terms:
            windows = self._windows(grad, numbers.gradient_rows)
            products = add_in_place(products, paddle.matmul(windows, transformed[block.start:block.end], transpose_y=True))
            own = self._spread(_gather(block.of(rows, images), numbers.own_rows, self.tiles.corners))
            by_weight = add_in_place(by_weight, paddle.matmul(own, windows, transpose_x=True))
        by_rows = self._pixels(products)
        tasks, count, channels = by_rows.shape
        if self.tiles.pool:
            by_rows = paddle.gather(by_rows.reshape([-1, channels]), numbers.reading_order).reshape([tasks, -1, channels])
        return by_rows, by_weight

    def transpose_transform(self, by_weight):
        """From the gradient by the transformed flipped weight to that by the weight, (T, 9 * C, D)."""
        tasks, _, channels, depth = by_weight.shape
        return self._times("G flipped", by_weight, transpose=True).reshape([tasks, TAPS * channels, depth])

    def corners(self, maps, block):
        """What `output` returns as the corners of the pooling windows: copies (tasks, pooled pixels, D), in reading order, that may be
        overwritten; without pooling the maps themselves."""
        if not self.tiles.pool:
            return [maps]
        tiles, pooled = self.tiles.tiles(block.images), self.tiles.pooled_tiles(block.images)
        # Not slices: those are views with gaps, which every later operator would copy anew, slowly.
        return paddle.split(maps, [pooled, tiles - pooled] * 4 if tiles > pooled else 4, axis=1)[::2 if tiles > pooled else 1]

    def from_corners(self, corners, block):
        """The transpose of `corners`: zeros where no pooling window is."""
        if not self.tiles.pool:
            return corners[0]
        tasks, pooled, depth = corners[0].shape
        edge = self.tiles.tiles(block.images) - pooled
        if edge:
            zeros = paddle.zeros([tasks, edge, depth], corners[0].dtype)
            corners = [part for corner in corners for part in (corner, zeros)]
        return paddle.concat(corners, axis=1)

    def sums(self, maps, block):
        """Sums over the pixels inside the map: (tasks, 1, D). A product with ones takes a fortieth of the time of a sum over an axis."""
        return paddle.matmul(self._numbers(block, maps.dtype).inside, maps)

    def _numbers(self, block, dtype):
        return _numbers(self.tiles, block.end - block.start, block.images, dtype, paddle.get_device())

    def _windows(self, rows, numbers):
        """What lies at the positions of all tiles, times B: (tasks, positions, tiles, C)."""
        windows = _gather(rows, numbers, self.tiles.positions)
        return self._times("B", windows).reshape(windows.shape)

    def _pixels(self, products):
        """A times the products: (tasks, pixels of all tiles, D)."""
        tasks, _, _, depth = products.shape
        return self._times("A", products).reshape([tasks, -1, depth])

    def _spread(self, own):
        """A^T times the tiles' own pixels: (tasks, positions, tiles, C)."""
        tasks, _, tiles, channels = own.shape
        if not self.tiles.pool:
            return own.expand([tasks, self.tiles.positions, tiles, channels])
        return self._times("A", own, transpose=True).reshape([tasks, self.tiles.positions, tiles, channels])

    def _times(self, name, values, transpose=False):
        """A constant of the algorithm, or its transpose, times values (tasks, k, ...) along their second axis: (tasks, k', ...). Where the
        algorithm has no such constant, the values."""
        if name not in _ALGORITHMS[self._algorithm]:
            return values
        return paddle.matmul(_constant(self._algorithm, name, values.dtype, paddle.get_device()), values.flatten(2), transpose_x=transpose)


def add_in_place(total, term):
    """total + term, where a total of None is nothing yet; total may be overwritten."""
    return term if total is None else total.add_(term)


def _gather(rows, numbers, count):
    """The numbered rows of (tasks, n, C), where the row after the last is zeros: (tasks, count, numbers / count, C)."""
    tasks, _, channels = rows.shape
    source = paddle.concat([rows.reshape([-1, channels]), paddle.zeros([1, channels], rows.dtype)])
    return paddle.gather(source, numbers).reshape([tasks, count, -1, channels])


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


class _Numbers(typing.NamedTuple):
    """The row numbers of `Tiles` for some tasks together, as flat tensors."""

    rows: paddle.Tensor
    gradient_rows: paddle.Tensor
    own_rows: paddle.Tensor
    reading_order: paddle.Tensor
    inside: paddle.Tensor


# Blocks come in few sizes, and the networks of a program have few geometries.
@functools.lru_cache(maxsize=64)
def _numbers(tiles, tasks, images, dtype, device):
    def of_tasks(numbers, size):
        """The numbers within one task's `size` rows for all tasks; what points after the last row still does."""
        numbers = numbers.ravel()
        spread = np.where(numbers == size, tasks * size, numbers + np.arange(tasks)[:, None] * size)
        return paddle.to_tensor(spread.ravel().astype(np.int32))

    inputs, outputs = images * tiles.height * tiles.width, tiles.corners * tiles.tiles(images)
    own = tiles.own_rows(images)
    return _Numbers(of_tasks(tiles.rows(images), inputs), of_tasks(tiles.gradient_rows(images), outputs), of_tasks(own, inputs),
                    of_tasks(tiles.reading_order(images), own.size), paddle.to_tensor(tiles.inside(images)[None], dtype))


@functools.lru_cache(maxsize=32)
def _constant(algorithm, name, dtype, device):
    return paddle.to_tensor(_ALGORITHMS[algorithm][name], dtype)
