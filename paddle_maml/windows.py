"""Where the pixels of a 3x3 convolution with padding 1 lie, as row numbers.

Activations are kept as *rows*: a tensor (T, N * H * W, C) whose row is one pixel of one image with all its channels, images and
pixels in reading order. A convolution is then a gather of rows and a matrix product (convolution.py); padding is one more row,
of zeros, after the last. This module only counts.
"""
import dataclasses
import functools

import numpy as np

KERNEL = 3
TAPS = KERNEL * KERNEL


def _number(row, column, height, width):
    """Pixels by row and column as numbers in reading order, -1 outside the map."""
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return np.where(inside, row * width + column, -1)


def _in_images(numbers, images, size):
    """Numbers (..., pixels) within one image, for all images: (..., images * pixels); what is -1 becomes the row after the last."""
    spread = numbers[..., None, :] + np.arange(images)[:, None] * size
    spread = np.where(numbers[..., None, :] < 0, images * size, spread)
    return spread.reshape(numbers.shape[:-1] + (-1,)).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Windows:
    """The pixels under the kernel, output pixel by output pixel: for the first layer, where they are the same in all inner steps.

    Output pixels come in *pieces*. Before a 2x2 max-pool there are four, one for each corner of the pooling windows, so that
    pooling is the maximum of four tensors, and a fifth with the pixels that no window covers (the last row and column of an
    odd-sized map: they do not reach the pooled map but they count in the batch statistics). Without pooling there is one.

    Args:
        height, width: the input map, in pixels.
        stride: 1 or 2.
        pool: whether a 2x2 max-pool follows.
    """

    height: int
    width: int
    stride: int = 1
    pool: bool = False

    def _pieces(self):
        """For each piece the pixels (pixels, 9) within one image, -1 outside."""
        conv_height, conv_width = (self.height - 1) // self.stride + 1, (self.width - 1) // self.stride + 1
        row, column = np.divmod(np.arange(conv_height * conv_width), conv_width)
        down, right = np.divmod(np.arange(TAPS), KERNEL)
        taps = _number(row[:, None] * self.stride + down - 1, column[:, None] * self.stride + right - 1, self.height, self.width)
        if not self.pool:
            return [taps]
        covered = (row < conv_height // 2 * 2) & (column < conv_width // 2 * 2)
        chosen = [covered & (row % 2 == i) & (column % 2 == j) for i in (0, 1) for j in (0, 1)]
        return [taps[which] for which in chosen + ([] if covered.all() else [~covered])]

    def rows(self, images):
        """For each piece an int32 array (images * pixels, 9): the rows of one task under each output pixel."""
        return [np.ascontiguousarray(_in_images(taps.T, images, self.height * self.width).T) for taps in self._pieces()]


@dataclasses.dataclass(frozen=True)
class Tiles:
    """The output of a convolution, cut into tiles that are computed together from the input pixels around them.

    With `pool` a tile is the 2x2 pixels of a pooling window, and it takes 4x4 input pixels, its *positions* (Winograd's F(2x2, 3x3));
    without, it is one pixel and takes the nine under the kernel. An odd-sized map has tiles that reach over its edge. Tiles
    are ordered: first those that lie inside the map, image by image in reading order (with `pool` they are the pooled map), then the
    others. The pixels of all tiles are ordered corner by corner, and the positions likewise.

    Args:
        height, width: the input map, in pixels.
        stride: 1 or 2; 1 with `pool`.
        pool: whether a 2x2 max-pool follows.
    """

    height: int
    width: int
    stride: int = 1
    pool: bool = False

    @property
    def side(self):
        """Pixels of a tile along one axis."""
        return 2 if self.pool else 1

    @property
    def corners(self):
        """Pixels of a tile."""
        return self.side ** 2

    @property
    def positions(self):
        """Input pixels that a tile takes."""
        return (self.side + KERNEL - 1) ** 2

    @property
    def conv_size(self):
        """Height and width after the convolution."""
        return (self.height - 1) // self.stride + 1, (self.width - 1) // self.stride + 1

    @property
    def out_size(self):
        """Height and width after the convolution and, with `pool`, after the pooling."""
        return tuple(size // self.side for size in self.conv_size)

    def tiles(self, images):
        """Tiles of the output of so many images."""
        return images * _grid(*self.conv_size, self.side)[0].size

    def pooled_tiles(self, images):
        """The first of them, those inside the map."""
        return images * self.out_size[0] * self.out_size[1]

    def rows(self, images):
        """Input rows at the positions of the output's tiles: int32 (positions, images * tiles); outside is the row after the last."""
        row, column, inside = _grid(*self.conv_size, self.side)
        down, right = self._positions()
        step = self.side * self.stride
        return _ordered(_number(row * step + down, column * step + right, self.height, self.width), inside, images, self.height * self.width)

    def gradient_rows(self, images):
        """The same for the gradient: output pixels, in tile order, at the positions of the input's tiles.

        Returns:
            int32 (positions, images * tiles of the input). With `pool` the positions surround a tile as they do in `rows`; without,
            position k is the output pixel that sees the input pixel under tap k.
        """
        height, width = self.conv_size
        row, column, inside = _grid(self.height, self.width, self.side)
        down, right = self._positions()
        if self.pool:
            numbers = _number(row * 2 + down, column * 2 + right, height, width)
        else:
            (out_row, row_rest), (out_column, column_rest) = np.divmod(row - down, self.stride), np.divmod(column - right, self.stride)
            numbers = np.where((row_rest == 0) & (column_rest == 0), _number(out_row, out_column, height, width), -1)
        in_tile_order = np.append(_places(height, width, self.side, images), self.corners * self.tiles(images))
        return in_tile_order[_ordered(numbers, inside, images, height * width)].astype(np.int32)

    def own_rows(self, images):
        """Input rows that are the pixels of the input's tiles: int32 (corners, images * tiles)."""
        return _pixels(self.height, self.width, self.side, images)

    def reading_order(self, images):
        """Where each input row is among the pixels of the input's tiles: int32 (images * height * width,)."""
        return _places(self.height, self.width, self.side, images)

    def inside(self, images):
        """Which pixels of the output's tiles are inside the map: bool (corners * images * tiles,)."""
        height, width = self.conv_size
        return _pixels(height, width, self.side, images).ravel() < images * height * width

    def _positions(self):
        down, right = np.divmod(np.arange(self.positions), self.side + KERNEL - 1)
        return down[:, None] - 1, right[:, None] - 1


@functools.lru_cache(maxsize=64)
def _grid(height, width, side):
    """The tiles of a map, in reading order: row, column, and whether the whole tile is inside."""
    rows, columns = -(-height // side), -(-width // side)
    row, column = np.divmod(np.arange(rows * columns), columns)
    return row, column, ((row + 1) * side <= height) & ((column + 1) * side <= width)


def _ordered(numbers, inside, images, size):
    """Numbers (k, tiles) within one image as (k, images * tiles) in the order of `Tiles`."""
    return np.concatenate([_in_images(numbers[:, which], images, size) for which in (inside, ~inside)], axis=1)


def _pixels(height, width, side, images):
    """The pixels of all tiles, corner by corner, as numbers in reading order: (corners, images * tiles)."""
    row, column, inside = _grid(height, width, side)
    down, right = np.divmod(np.arange(side * side)[:, None], side)
    return _ordered(_number(row * side + down, column * side + right, height, width), inside, images, height * width)


def _places(height, width, side, images):
    """The inverse of `_pixels`: for each pixel in reading order its place among the pixels of all tiles."""
    pixels = _pixels(height, width, side, images).ravel()
    places = np.empty(images * height * width + 1, np.int32)
    places[pixels] = np.arange(pixels.size)
    return places[:-1]
