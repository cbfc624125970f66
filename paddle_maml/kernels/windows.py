"""Where the pixels of a 3x3 convolution with padding 1 lie, as row numbers.

Activations are kept as *rows*: a tensor (T, N * H * W, C) whose row is one pixel of one image with all its
channels, images and pixels in reading order. A convolution is then a gather of rows and a matrix product
(convolution.py); padding is one more row, of zeros, after the last. This module only counts.
"""

from __future__ import annotations

import dataclasses

import numpy as np

KERNEL = 3
TAPS = KERNEL * KERNEL
CORNERS = 4  # pixels of a pooling window


def _number(row, column, height, width):
    """Pixels by row and column as numbers in reading order, -1 outside the map."""
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return np.where(inside, row * width + column, -1)


def _in_images(numbers, images, size):
    """Numbers (..., pixels) within one image, for all images: (..., images * pixels); what is -1 becomes the
    row after the last."""
    spread = numbers[..., None, :] + np.arange(images)[:, None] * size
    spread = np.where(numbers[..., None, :] < 0, images * size, spread)
    return spread.reshape(numbers.shape[:-1] + (-1,)).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Windows:
    """The pixels under the kernel, output pixel by output pixel.

    Output pixels come in *pieces*. Before a 2x2 max-pool there are four, one for each corner of the pooling
    windows, so that pooling is the maximum of four tensors, and a fifth with the pixels that no window covers
    (the last row and column of an odd-sized map: they do not reach the pooled map but they count in the batch
    statistics). Without pooling there is one.

    Args:
        height, width: the input map, in pixels.
        pool: whether a 2x2 max-pool follows; then the stride is 1, else 2.
    """

    height: int
    width: int
    pool: bool

    @property
    def stride(self) -> int:
        """In pixels."""
        return 1 if self.pool else 2

    @property
    def conv_size(self) -> tuple[int, int]:
        """Height and width after the convolution."""
        return (self.height - 1) // self.stride + 1, (self.width - 1) // self.stride + 1

    def _pieces(self):
        """For each piece the pixels (pixels, 9) within one image, -1 outside."""
        conv_height, conv_width = self.conv_size
        row, column = np.divmod(np.arange(conv_height * conv_width), conv_width)
        down, right = np.divmod(np.arange(TAPS), KERNEL)
        taps = _number(
            row[:, None] * self.stride + down - 1,
            column[:, None] * self.stride + right - 1,
            self.height,
            self.width,
        )
        if not self.pool:
            return [taps]
        covered = (row < conv_height // 2 * 2) & (column < conv_width // 2 * 2)
        chosen = [covered & (row % 2 == i) & (column % 2 == j) for i in (0, 1) for j in (0, 1)]
        return [taps[which] for which in chosen + ([] if covered.all() else [~covered])]

    def rows(self, images: int) -> list[np.ndarray]:
        """For each piece an int32 array (images * pixels, 9): the rows of one task under each output
        pixel."""
        return [
            np.ascontiguousarray(_in_images(taps.T, images, self.height * self.width).T)
            for taps in self._pieces()
        ]

    def uses(self, images: int) -> np.ndarray:
        """Without pooling, where each input row occurs in the flat `rows`: int32 (most uses of a row, images
        * height * width); what is left over of the columns points after the end of `rows`."""
        [taps] = self._pieces()
        places = np.argsort(taps.ravel(), kind="stable")
        counts = np.bincount(taps.ravel() + 1, minlength=self.height * self.width + 1)
        first, counts = np.cumsum(counts)[:-1], counts[1:]  # counts[0] is of what lies outside
        number = np.arange(counts.max())[:, None]
        table = np.where(number < counts, places[np.minimum(first + number, taps.size - 1)], -1)
        return _in_images(table, images, taps.size)

    def back(self, images: int) -> np.ndarray:
        """With pooling, for each input pixel in reading order the nine pixels of the maps around it: int32
        (images * height * width, 9) of rows of the pieces, one after the other."""
        rows, size = np.concatenate(self.rows(images)), images * self.height * self.width
        own = rows[:, TAPS // 2]  # the pixel itself lies under the middle of the kernel
        place = np.append(np.empty(size, np.int32), size).astype(np.int32)
        place[own] = np.arange(size)
        return place[rows[place[:size]]]
