"""The convolution before a 2x2 max-pool, by Winograd's algorithm.

A bilinear algorithm computes the pixels y of a tile from the pixels x at its positions and the nine taps w as

    y = A [(G w) * (B x)],

with a product over the channels at each position. Winograd's F(2x2, 3x3) (Lavin & Gray 2016, "Fast algorithms
for convolutional neural networks", section 4.1) takes 16 products for the four pixels of a pooling window
where the definition takes 36. The constants are 0, 1, 1/2 and 1/4 and their negatives, so that the result is
that of the definition but for rounding.

At 14x14 pixels, 64 channels and 75 images that is 4.8 ms where gathering the nine pixels under the kernel for
one product took 9.9, and 8.4 ms for both gradients where it took 18.7 (one thread, float32; two thirds of it
are the products, at the speed of the library that computes them).

Tiles of 4x4 pixels, F(4x4, 3x3), were tried for the maps of 7x7 and 3x3: what they save in products is lost
in pooling the windows over the edge, a meta-iteration takes as long, and the rounding is larger.

The gradient by the input is such a convolution of the output's gradient, with the taps in reverse order; the
gradient by the taps is, at each position, the product of A^T times the input's own pixels with what the
former has gathered and multiplied by B.
"""

from __future__ import annotations

import functools
import typing

import numpy as np
import paddle
from paddle import Tensor

from .convolution import Convolution, Portion, add_in_place, of_tasks, with_zeros
from .windows import CORNERS, POSITIONS, TAPS, Tiles

_B = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
_G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
_A = np.array([[1, 1, 1, 0], [0, 1, -1, -1]])
# Of the two axes together; "G flipped": of the taps in reverse order.
_CONSTANTS = {
    "B": np.kron(_B, _B),
    "G": np.kron(_G, _G),
    "G flipped": np.kron(_G, _G)[:, ::-1],
    "A": np.kron(_A, _A),
}


class PooledConvolution(Convolution):
    """Of stride 1, before a 2x2 max-pool, for which it arranges its maps: the pixels of all tiles, corner by
    corner (see `Tiles`). Tiles that reach over the edge have pixels that are not of the output.

    Args:
        height, width: the map, in pixels.
    """

    def __init__(self, height: int, width: int):
        self._tiles = Tiles(height, width)
        super().__init__(height * width, self._tiles.out_size, POSITIONS * self._tiles.tiles(1))

    def transform(self, weight: Tensor, for_gradient: bool = False) -> Tensor:
        """G w at each position, (T, positions, C, D); for the gradient of the taps in reverse order."""
        tasks, rows, depth = weight.shape
        return _times("G flipped" if for_gradient else "G", weight.reshape([tasks, TAPS, -1])).reshape(
            [tasks, POSITIONS, rows // TAPS, depth]
        )

    def transpose_transform(self, by_weight: Tensor) -> Tensor:
        tasks, _, channels, depth = by_weight.shape
        return _times("G flipped", by_weight, transpose=True).reshape([tasks, TAPS * channels, depth])

    def output(self, portion: Portion, factors: list[tuple[Tensor, Tensor]], images: int) -> Tensor:
        numbers, total = self._numbers(portion, factors[0][0].dtype), None
        for rows, transformed in factors:
            windows = _windows(portion.of(rows, images), numbers.rows)
            total = add_in_place(total, paddle.matmul(windows, transformed[portion.start : portion.end]))
        return _pixels(total)

    def gradient(
        self, portion: Portion, terms: list[tuple[Tensor, Tensor, Tensor]], images: int
    ) -> tuple[Tensor, Tensor]:
        numbers, products, by_weight = self._numbers(portion, terms[0][0].dtype), None, None
        for grad, transformed, rows in terms:
            windows = _windows(grad, numbers.rows_in_tile_order)
            products = add_in_place(
                products, paddle.matmul(windows, transformed[portion.start : portion.end], transpose_y=True)
            )
            own = _gather(portion.of(rows, images), numbers.own_rows, CORNERS)
            spread = _times("A", own, transpose=True).reshape([portion.tasks, POSITIONS] + own.shape[2:])
            by_weight = add_in_place(by_weight, paddle.matmul(spread, windows, transpose_x=True))
        by_rows = _pixels(products)
        channels = by_rows.shape[2]
        return paddle.gather(by_rows.reshape([-1, channels]), numbers.reading_order).reshape(
            [portion.tasks, -1, channels]
        ), by_weight

    def corners(self, maps: Tensor, portion: Portion) -> list[Tensor]:
        tiles, pooled = self._tiles.tiles(portion.images), self._tiles.pooled_tiles(portion.images)
        # Not slices: those are views with gaps, which every later operator would copy anew, slowly.
        return paddle.split(maps, [pooled, tiles - pooled] * 4 if tiles > pooled else 4, axis=1)[
            :: 2 if tiles > pooled else 1
        ]

    def from_corners(self, corners: list[Tensor], portion: Portion) -> Tensor:
        tasks, pooled, depth = corners[0].shape
        edge = self._tiles.tiles(portion.images) - pooled
        if edge:
            zeros = paddle.zeros([tasks, edge, depth], corners[0].dtype)
            corners = [part for corner in corners for part in (corner, zeros)]
        return paddle.concat(corners, axis=1)

    def sums(self, maps: Tensor, portion: Portion) -> Tensor:
        return paddle.matmul(self._numbers(portion, maps.dtype).inside, maps)

    def _numbers(self, portion, dtype):
        return _tile_numbers(self._tiles, portion.tasks, portion.images, dtype, paddle.get_device())


def _windows(rows, numbers):
    """B times what lies at the positions of all tiles: (tasks, positions, tiles, C)."""
    windows = _gather(rows, numbers, POSITIONS)
    return _times("B", windows).reshape(windows.shape)


def _pixels(products):
    """A times the products: (tasks, pixels of all tiles, D)."""
    tasks, _, _, depth = products.shape
    return _times("A", products).reshape([tasks, -1, depth])


def _gather(rows, numbers, count):
    """The numbered rows of (tasks, n, C), where the row after the last is zeros: (tasks, count, numbers /
    count, C)."""
    tasks, _, channels = rows.shape
    return paddle.gather(with_zeros(rows), numbers).reshape([tasks, count, -1, channels])


def _times(name, values, transpose=False):
    """A constant of the algorithm, or its transpose, times values (tasks, k, ...) along their second axis:
    (tasks, k', ...)."""
    return paddle.matmul(
        _constant(name, values.dtype, paddle.get_device()), values.flatten(2), transpose_x=transpose
    )


class _TileNumbers(typing.NamedTuple):
    """The row numbers of `Tiles` for some tasks together, as flat tensors."""

    rows: paddle.Tensor
    rows_in_tile_order: paddle.Tensor
    own_rows: paddle.Tensor
    reading_order: paddle.Tensor
    inside: paddle.Tensor


# Blocks come in few sizes, and the networks of a program have few geometries.
@functools.lru_cache(maxsize=64)
def _tile_numbers(tiles, tasks, images, dtype, device):
    size, own = images * tiles.height * tiles.width, tiles.own_rows(images)
    return _TileNumbers(
        of_tasks(tiles.rows(images), size, tasks),
        of_tasks(tiles.rows_in_tile_order(images), own.size, tasks),
        of_tasks(own, size, tasks),
        of_tasks(tiles.reading_order(images), own.size, tasks),
        paddle.to_tensor(tiles.inside(images)[None], dtype),
    )


@functools.lru_cache(maxsize=32)
def _constant(name, dtype, device):
    return paddle.to_tensor(_CONSTANTS[name], dtype)
