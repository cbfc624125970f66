"""Where the windows of a 3x3 convolution lie, as row numbers.

Activations are kept as *rows*: a tensor (T, N * H * W + 1, C) whose row is one pixel of one image with all its channels; the last
row of a task is zeros, and the padding of a window points to it. A convolution is then a gather of nine rows for every output pixel followed by a matrix product, and its gradients are the same
two things again: see operators.py for the arithmetic. This module only counts.

Output pixels come in *pieces*. Before a 2x2 max-pool there are four pieces, one for each corner of the pooling windows, so
that pooling is the maximum of four tensors, and a fifth with the pixels that no window covers (the last row and column of
an odd-sized map: they do not reach the pooled map but they count in the batch statistics). Without pooling there is one.
"""
import functools

import numpy as np

KERNEL = 3
TAPS = KERNEL * KERNEL


class Windows:
    """The geometry of one 3x3 convolution with padding 1.

    Args:
        height, width: the input map, in pixels.
        stride: 1 or 2.
        pool: whether the output pixels are to be arranged for a 2x2 max-pool.

    Attributes:
        out_height, out_width: the map after the convolution and, with `pool`, after the pooling.
        piece_sizes: pixels of one image in each piece.
    """

    def __init__(self, height, width, stride=1, pool=False):
        self.height, self.width, self.stride, self.pool = height, width, stride, pool
        conv_height = (height - 1) // stride + 1
        conv_width = (width - 1) // stride + 1
        grid = np.arange(conv_height * conv_width).reshape(conv_height, conv_width)
        if pool:
            self.out_height, self.out_width = conv_height // 2, conv_width // 2
            covered = grid[:2 * self.out_height, :2 * self.out_width]
            pieces = [covered[i::2, j::2].ravel() for i in (0, 1) for j in (0, 1)]
            rest = np.setdiff1d(grid, covered)
            if rest.size:
                pieces.append(rest)
        else:
            self.out_height, self.out_width = conv_height, conv_width
            pieces = [grid.ravel()]
        self.piece_sizes = [piece.size for piece in pieces]
        self._conv_width = conv_width
        self._pieces = pieces

    @functools.cached_property
    def _forward(self):
        """For each piece an array (pixels, 9): the input pixel under each tap, or -1 in the padding."""
        down, right = np.divmod(np.arange(TAPS), KERNEL)
        result = []
        for piece in self._pieces:
            out_row, out_column = np.divmod(piece, self._conv_width)
            row = out_row[:, None] * self.stride + down - 1
            column = out_column[:, None] * self.stride + right - 1
            inside = (row >= 0) & (row < self.height) & (column >= 0) & (column < self.width)
            result.append(np.where(inside, row * self.width + column, -1))
        return result

    def forward_rows(self, tasks, images):
        """Row numbers of the nine input pixels under every output pixel.

        Returns:
            For each piece an int32 array (tasks, images * pixels, 9) of rows of the input seen as (tasks * (images * height *
            width + 1), C).
        """
        pixels = self.height * self.width
        task_rows = images * pixels + 1
        task = np.arange(tasks)[:, None, None, None] * task_rows
        start = task + np.arange(images)[None, :, None, None] * pixels
        zero_row = task + task_rows - 1
        return [np.where(taps < 0, zero_row, start + taps).astype(np.int32).reshape(tasks, -1, TAPS) for taps in self._forward]

    def backward_rows(self, tasks, images):
        """Row numbers of the output pixels that an input pixel reached, tap by tap.

        Returns:
            An int32 array (tasks, images * height * width + 1, 9) of rows of the pieces, each seen as (tasks * images * pixels, D)
            and all concatenated in order; a tap that reached no output pixel, and all of the row of zeros, points to one row of
            zeros after the last.
        """
        pixels = self.height * self.width
        zero_row = tasks * images * sum(self.piece_sizes)
        rows = np.full((tasks * images, pixels, TAPS), zero_row, np.int32)
        image = np.arange(tasks * images)[:, None]
        start = 0
        for taps in self._forward:
            size = taps.shape[0]
            out, tap = np.nonzero(taps >= 0)
            rows[image, taps[out, tap], tap] = start + image * size + out
            start += tasks * images * size
        rows = rows.reshape(tasks, images * pixels, TAPS)
        return np.concatenate([rows, np.full((tasks, 1, TAPS), zero_row, np.int32)], axis=1)
