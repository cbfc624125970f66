"""Random changes of the images of an episode: mirrored, and cropped from a wider image.

The rule, complete enough to make the same images in any language; words and below are those of draws.py:

1. The words of episode i are those of the key (seed, 2**63 + i): the episode has the same images as without.
2. For each image of the support set, then for each of the query set, in their order in the episode: with
   flips f = below(2); with crops y = below(2 * m + 1), then x = below(2 * n + 1), where m = H // 10 and n = W
   // 10.
3. Where f is 1 the image is mirrored left to right. Then the pixel (row i, column j) is the pixel (i + y - m,
   j + x - n), and of a row or column outside the image the nearest one inside.

So the picture moves by up to a tenth of its side (8 of 84 pixels), and its edge is repeated where it has
moved away.
"""

from __future__ import annotations

import numpy as np

from .draws import Draws, philox_words

SHIFT = 10  # the part of a side that a picture moves by at most


def changes_of(seed: int, index: int) -> Draws:
    """The draws of an episode's changes (rule 1)."""
    return Draws(philox_words(seed, 2**63 + index))


def change(images: np.ndarray, draws: Draws, crops: bool, flips: bool) -> np.ndarray:
    """Images (N, C, H, W) of any type, mirrored and cropped at random (rules 2 and 3); the shape stays."""
    count, channels, *sides = images.shape
    most = [side // SHIFT if crops else 0 for side in sides]
    numbers = [
        [draws.below(2) if flips else 0, *(draws.below(2 * m + 1) - m if crops else 0 for m in most)]
        for _ in range(count)
    ]
    flipped, *shifts = np.array(numbers, np.int64).T[:, :, None]
    rows, columns = (np.clip(np.arange(side) + shift, 0, side - 1) for side, shift in zip(sides, shifts))
    columns = np.where(flipped, sides[1] - 1 - columns, columns)
    image, channel = np.ogrid[:count, :channels]
    place = rows[:, None, :, None], columns[:, None, None]
    return images[(image[..., None, None], channel[..., None, None], *place)]
