"""From a drawing (105x105, uint8, ink black on white) to the network's input: resizing, orientation, scaling
of the values."""

from __future__ import annotations

import numpy as np
from PIL import Image

from ..errors import UserError


def resize(images: np.ndarray, preprocessing: str = "competition", image_size: int = 28) -> np.ndarray:
    """Resizes drawings to squares.

    Args:
        images: uint8 (N, H, W).
        preprocessing: "competition" (two taps per axis without anti-aliasing, the arrays the competition
            published) or "antialias" (Pillow's Lanczos filter, which weighs all pixels under an output
            pixel).
        image_size: height and width of the result, in pixels.

    Returns:
        uint8 (N, image_size, image_size).

    Raises:
        UserError: unknown rule, or a size below 1.
    """
    check_rule(preprocessing, image_size)
    return RULES[preprocessing](images, image_size)


def check_rule(preprocessing: str, image_size: int) -> None:
    """Raises UserError for an unknown rule or a size below 1."""
    if preprocessing not in RULES:
        raise UserError(f'preprocessing is "{preprocessing}", but must be one of {", ".join(RULES)}.')
    if image_size < 1:
        raise UserError(f"image_size is {image_size}, but must be at least 1.")


def _resize_two_taps(images, size):
    """OpenCV's `resize` (INTER_LINEAR) for uint8, in its 11-bit fixed point: bit for bit what the competition
    published.

    Output pixel i mixes the two input pixels around (i + 0.5) * scale - 0.5. The shifts, 4 and 16 and then 2,
    are where OpenCV drops bits of the 22-bit product; rounding anywhere else changes some pixels by one.
    """
    left, right, keep, take = _taps(images.shape[2], size)
    rows = images.astype(np.int32)
    rows = rows[:, :, left] * keep + rows[:, :, right] * take
    top, bottom, keep, take = _taps(images.shape[1], size)
    rows >>= 4
    upper = (rows[:, top] * keep[:, None]) >> 16
    lower = (rows[:, bottom] * take[:, None]) >> 16
    return ((upper + lower + 2) >> 2).astype(np.uint8)


def _taps(length, size):
    """Indices of the two input pixels of each output pixel, and their weights in 1/2048."""
    position = ((np.arange(size) + 0.5) * (length / size) - 0.5).astype(np.float32)
    position = np.clip(position, 0, length - 1)
    first = np.floor(position).astype(np.int64)
    fraction = position - first.astype(np.float32)
    weight = np.rint(fraction * np.float32(2048)).astype(np.int32)
    opposite = np.rint((1 - fraction) * np.float32(2048)).astype(np.int32)
    return first, np.minimum(first + 1, length - 1), opposite, weight


def _resize_antialias(images, size):
    return np.stack(
        [np.asarray(Image.fromarray(image).resize((size, size), Image.LANCZOS)) for image in images]
    )


RULES = {"competition": _resize_two_taps, "antialias": _resize_antialias}


def orientations(rotations: bool, reflections: bool) -> range:
    """The orientations that `orient` may give to a class: 0 alone, 0 to 3 with rotations, 0 and 4 with
    reflections, all eight with both."""
    return range(0, 8 if reflections else 4, 1 if rotations else 4)


def orient(images: np.ndarray, orientation: int) -> np.ndarray:
    """Mirrors finished images left to right, from orientation 4 on, and then turns them counter-clockwise.

    Args:
        images: (..., H, W); with H == W where they are turned.
        orientation: 0 to 7; modulo 4 the number of quarter turns.

    Returns:
        A view of the same shape.
    """
    return np.rot90(images[..., ::-1] if orientation >= 4 else images, orientation % 4, axes=(-2, -1))


def to_network_input(images: np.ndarray) -> np.ndarray:
    """Scales uint8 values to float32 in [-1, 1] (ink -1, background +1); the shape stays."""
    scaled = np.divide(images, np.float32(255), dtype=np.float32)
    scaled *= 2
    scaled -= 1
    return scaled
