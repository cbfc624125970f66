"""The arithmetic of a 3x3 convolution of many tasks side by side: gathers of rows and matrix products, a
portion at a time.

`Convolution` is what operators.py makes a twice differentiable operator of. Winograd's algorithm in the same
operators took 0.77 to 0.79 of a meta-iteration's time, and twice the code: it is left to the kernel in C.
"""

from __future__ import annotations

import functools
import typing

import numpy as np
import paddle
from paddle import Tensor

from .windows import CORNERS, TAPS, Windows

# Rows that are gathered and multiplied at once. On a CPU a compromise, measured: fewer would stay in the
# cache from the gather to the last use, more would need fewer calls. On a GPU calls count, and the bound only
# limits memory (2^19 rows of 64 float32: 0.13 GB).
CPU_PORTION_ROWS = 12288
GPU_PORTION_ROWS = 1 << 19


class Portion(typing.NamedTuple):
    """Images `first` to `last` of tasks `start` to `end`; of one task, or all images of some."""

    start: int
    end: int
    first: int
    last: int

    @property
    def tasks(self) -> int:
        """How many there are."""
        return self.end - self.start

    @property
    def images(self) -> int:
        """Images of each task."""
        return self.last - self.first

    def of(self, rows: Tensor, images: int) -> Tensor:
        """Its part of rows (T, images * pixels, C)."""
        pixels = rows.shape[1] // images
        # All rows of some tasks or some of one: contiguous either way, which Paddle sees only in the flat
        # tensor.
        start = (self.start * images + self.first) * pixels
        return rows.flatten(0, 1)[start : start + self.tasks * self.images * pixels].reshape(
            [self.tasks, -1, rows.shape[2]]
        )


class Convolution:
    """3x3, padding 1, without bias: one product of the pixels under the kernel with the taps, as it is
    defined. Activations are rows (T, N * H * W, C); weights (T, 9 * C, D), the taps in reading order, the
    channels of a tap together.

    Its *maps* are its output for a portion, (tasks, pixels, D), a row a pixel, in the order of the pieces of
    `Windows`.

    Args:
        height, width: the input map, in pixels.
        pool: whether a 2x2 max-pool follows; then the stride is 1, else 2.

    Attributes:
        pixels: of one image's output, before a pooling.
        out_size: height and width, after the pooling if there is one.
    """

    def __init__(self, height: int, width: int, pool: bool):
        self._windows = Windows(height, width, pool)
        size = self._windows.conv_size
        self.pixels = int(np.prod(size))
        self.out_size = (size[0] // 2, size[1] // 2) if pool else size

    def groups(self, tasks: int, images: int) -> list[list[Portion]]:
        """Lists of portions, each list with all images of the same tasks."""
        each = TAPS * self.pixels * images
        limit = CPU_PORTION_ROWS if paddle.get_device() == "cpu" else GPU_PORTION_ROWS
        together = max(1, limit // each)
        parts = -(-each // limit)
        step = -(-images // parts)
        return [
            [Portion(t, min(tasks, t + together), i, min(images, i + step)) for i in range(0, images, step)]
            for t in range(0, tasks, together)
        ]

    def output(self, portion: Portion, factors: list[tuple[Tensor, Tensor]], images: int) -> Tensor:
        """The maps of a portion, summed over factors, each (rows, weight)."""
        total = None
        for rows, weight in factors:
            windows = self._under_the_kernel(portion, rows, images)
            total = add_in_place(total, paddle.matmul(windows, weight[portion.start : portion.end]))
        return total

    def gradient(
        self, portion: Portion, terms: list[tuple[Tensor, Tensor, Tensor]], images: int
    ) -> tuple[Tensor, Tensor]:
        """The two gradients for a portion, summed over terms.

        Args:
            terms: each (the gradient of the maps, the weight, the input rows).

        Returns:
            By the input (tasks, images * H * W, C), and by the weight (tasks, 9 * C, D).
        """
        by_rows, by_weight = None, None
        for grad, weight, rows in terms:
            windows = self._under_the_kernel(portion, rows, images)
            by_weight = add_in_place(by_weight, paddle.matmul(windows, grad, transpose_x=True))
            back = self._back_pooled if self._windows.pool else self._back_strided
            by_rows = add_in_place(by_rows, back(portion, grad, weight[portion.start : portion.end]))
        return by_rows, by_weight

    def corners(self, maps: Tensor, portion: Portion) -> list[Tensor]:
        """The four corners of the pooling windows: copies (tasks, pooled pixels, D), in reading order, that
        may be overwritten; without pooling the maps themselves."""
        if not self._windows.pool:
            return [maps]
        # Not slices: those are views with gaps, which every later operator would copy anew, slowly.
        return paddle.split(maps, self._pieces(portion), axis=1)[:CORNERS]

    def from_corners(self, corners: list[Tensor], portion: Portion) -> Tensor:
        """The transpose of `corners`: zeros where no pooling window is."""
        if not self._windows.pool:
            return corners[0]
        tasks, _, depth = corners[0].shape
        others = [paddle.zeros([tasks, n, depth], corners[0].dtype) for n in self._pieces(portion)[CORNERS:]]
        return paddle.concat(corners + others, axis=1)

    def _pieces(self, portion):
        """Pixels of each of the pieces."""
        pooled = portion.images * int(np.prod(self.out_size))
        others = portion.images * self.pixels - CORNERS * pooled
        return [pooled] * CORNERS + ([others] if others else [])

    def _under_the_kernel(self, portion, rows, images):
        """(tasks, pixels, 9 * C)."""
        windows = paddle.gather(with_zeros(portion.of(rows, images)), self._numbers(portion).rows)
        return windows.reshape([portion.tasks, -1, TAPS * rows.shape[2]])

    def _back_pooled(self, portion, grad, weight):
        """The gradient by the input: the convolution of the maps' gradient with the turned kernel."""
        tasks, rows, depth = weight.shape
        windows = paddle.gather(with_zeros(grad), self._numbers(portion).back)
        turned = weight.reshape([tasks, TAPS, -1, depth]).flip(1).transpose([0, 1, 3, 2])
        return paddle.matmul(
            windows.reshape([tasks, -1, TAPS * depth]), turned.reshape([tasks, -1, rows // TAPS])
        )

    def _back_strided(self, portion, grad, weight):
        """The same, gathered from the products of the maps' gradient with the taps, at most four for each
        pixel: as a convolution it would be nine, most of them with zeros."""
        # The product of a row of zeros is one, too: where a pixel has fewer uses than others.
        padded = paddle.concat([grad, paddle.zeros([portion.tasks, 1, grad.shape[2]], grad.dtype)], axis=1)
        products, by_rows = paddle.matmul(padded, weight, transpose_y=True), None
        channels = products.shape[2] // TAPS
        source = products.reshape([-1, channels])
        for numbers in self._numbers(portion).back:
            by_rows = add_in_place(by_rows, paddle.gather(source, numbers))
        return by_rows.reshape([portion.tasks, -1, channels])

    def _numbers(self, portion):
        return _numbers(self._windows, portion.tasks, portion.images, paddle.get_device())


def column_sums(rows: Tensor) -> Tensor:
    """Sums over the rows of (T, n, C): (T, 1, C). The product with ones takes a fraction of the time of a sum
    over an axis (operators.py)."""
    return paddle.matmul(paddle.ones([rows.shape[0], 1, rows.shape[1]], rows.dtype), rows)


def add_in_place(total: Tensor | None, term: Tensor) -> Tensor:
    """total + term, where a total of None is nothing yet; total may be overwritten."""
    return term if total is None else total.add_(term)


def with_zeros(rows: Tensor) -> Tensor:
    """(T, n, C) as one list of rows, (T * n + 1, C), the last of zeros."""
    return paddle.concat([rows.flatten(0, 1), paddle.zeros([1, rows.shape[2]], rows.dtype)])


def of_tasks(numbers: np.ndarray, size: int, tasks: int) -> Tensor:
    """Numbers of the `size` rows of one task as a flat int32 tensor of those of all tasks; what points after
    the last row still does."""
    numbers = numbers.ravel()
    spread = np.where(numbers == size, tasks * size, numbers + np.arange(tasks)[:, None] * size)
    return paddle.to_tensor(spread.ravel().astype(np.int32))


def window_rows(rows: Tensor, windows: Windows, images: int) -> list[Tensor]:
    """The pixels under the kernel and a one: (T, images * pixels, 9 * C + 1) for each piece of `windows`, of
    rows (T, images * H * W, C)."""
    tasks, _, channels = rows.shape
    outside = paddle.zeros([tasks, 1, channels], rows.dtype)
    source = paddle.concat([rows, outside, outside + 1], axis=1)
    pieces = [
        paddle.gather(source, numbers, axis=1).reshape([tasks, -1, (TAPS + 1) * channels])
        for numbers in _window_numbers(windows, images, paddle.get_device())
    ]
    return [piece[:, :, : TAPS * channels + 1] for piece in pieces] if channels > 1 else pieces


@functools.lru_cache(maxsize=16)
def _window_numbers(windows, images, device):
    return [
        paddle.to_tensor(
            np.append(
                numbers,
                np.full([len(numbers), 1], windows.height * windows.width * images + 1, np.int32),
                axis=1,
            ).ravel()
        )
        for numbers in windows.rows(images)
    ]


class _Numbers(typing.NamedTuple):
    """Row numbers of `Windows` for some tasks together, as flat tensors.

    rows: of the pixels under the kernel.
    back: with pooling those of the maps under the turned kernel; without, a list, of the products with the
        kernel's taps, where TAPS rows of zeros follow those of each task.
    """

    rows: paddle.Tensor
    back: paddle.Tensor | list[paddle.Tensor]


# Blocks come in few sizes, and the networks of a program have few geometries.
@functools.lru_cache(maxsize=64)
def _numbers(windows, tasks, images, device):
    rows, size = np.concatenate(windows.rows(images)), images * windows.height * windows.width
    if windows.pool:
        back = of_tasks(windows.back(images), size, tasks)
    else:
        # Of a task's products `rows.size` are of the windows, and TAPS more, which are zeros, follow.
        of_task = np.arange(tasks)[:, None] * (rows.size + TAPS)
        back = [
            paddle.to_tensor((of_task + numbers).ravel().astype(np.int32)) for numbers in windows.uses(images)
        ]
    return _Numbers(of_tasks(rows, size, tasks), back)
