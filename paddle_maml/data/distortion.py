"""Distorted copies of training drawings, after the affine distortions of Koch et al. 2015, "Siamese neural
networks for one-shot image recognition". Theirs are composed of a rotation, shears, scales and shifts; here
the entries of the affine map are drawn themselves.

The rule, complete enough to make the same copies in any language (all integers are exact; `below` is that of
draws.py):

1. The words of class c, its place among all sorted classes, are those of Philox with the key (2015, c).
2. For copy k = 1, 2, ... and in it for each drawer in order, six draws: a, b, c, d = below(2 * 51 + 1) - 51,
   then y, x = below(2 * 6 + 1) - 6.
3. The copy's pixel (row i, column j) is the drawing's pixel at
       row    s + y + (256 + a) * (i - s) / 256 + b * (j - s) / 256,
       column s + x + c * (i - s) / 256 + (256 + d) * (j - s) / 256,     s = (side - 1) / 2,
   each rounded to the nearest whole number, halves up; outside the drawing there is paper.

So each entry of the affine matrix is off by up to 0.2, and the drawing moves by up to 6 of 105 pixels; ink
stays ink and paper paper. An episode may hold a drawing and its copy, or two copies, also one as support and
one as query image: in training alone.
"""

from __future__ import annotations

import numpy as np

from .draws import Draws, philox_words

SEED = 2015
MOST_SLOPE, MOST_SHIFT = 51, 6  # in 1/256, and in pixels
PAPER = 255


def with_distorted_copies(drawings: np.ndarray, copies: int, number: int) -> np.ndarray:
    """Drawings of one class, followed by distorted copies of them.

    Args:
        drawings: uint8 (N, side, side), paper 255.
        copies: of each drawing.
        number: of the class; it decides the distortions.
    Returns:
        uint8 (N * (1 + copies), side, side): the drawings, then the first copy of each, and so on.
    """
    draws = Draws(philox_words(SEED, number))
    return np.concatenate([drawings] + [_distort(drawings, draws) for _ in range(copies)])


def _distort(drawings, draws):
    side = drawings.shape[-1]
    numbers = np.array(
        [
            [draws.below(2 * most + 1) - most for most in 4 * [MOST_SLOPE] + 2 * [MOST_SHIFT]]
            for _ in drawings
        ],
        np.int32,
    )
    a, b, c, d, y, x = numbers.T[:, :, None, None]
    # Twice the distance from the centre, which for an even side lies between pixels; so the sums are in 1/512
    # of a pixel.
    rows = 2 * np.arange(side, dtype=np.int32)[:, None] - (side - 1)
    columns = rows.T
    centre = 256 * (side - 1) + 256  # with the half that makes the shift by 9 bits round to the nearest
    row = ((256 + a) * rows + b * columns + (512 * y + centre)) >> 9
    column = (c * rows + (256 + d) * columns + (512 * x + centre)) >> 9
    inside = (row >= 0) & (row < side) & (column >= 0) & (column < side)
    place = np.where(inside, row * side + column, side * side)
    paper = np.full((len(drawings), 1), PAPER, np.uint8)
    pixels = np.concatenate([drawings.reshape(len(drawings), -1), paper], axis=1)
    return np.take_along_axis(pixels, place.reshape(len(drawings), -1), axis=1).reshape(drawings.shape)
