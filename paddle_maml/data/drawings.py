"""A user's own drawing as an image like those that a network of Omniglot was trained on.

Omniglot's drawings are squares of 105x105 with black ink on white paper. Another image is made like that in
these steps, each of which leaves a drawing of Omniglot as it is:

1. Colour becomes grey.
2. Paper and ink. The paper is the median of the pixels at the border. Where it is darker than the middle
   between the darkest and the lightest pixel, the ink is light, and the image is inverted.
3. An image that is no square gets margins of paper on two sides.
4. One larger than 105x105 is brought to that size, by the mean of the pixels under each new one.
5. Paper becomes white and the darkest ink black, linearly: grey paper, a pale pencil and a line that is thin
   for its sheet count no more than in training.
6. The rule of the training images (`preprocessing.resize`) brings it to the network's size.

An image that has the network's size already is finished: of 2 to 6 only the inversion is left.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from ..errors import UserError
from .omniglot import SIDE
from .preprocessing import resize

#: "auto" decides by step 2; "dark" inverts no image; "light" inverts all.
INKS = ("auto", "dark", "light")
# Less between the darkest and the lightest pixel, of 255, is a sheet with nothing on it.
LEAST_CONTRAST = 24


def has_light_ink(grey: np.ndarray, ink: str, white: float = 255.0, name: str = "the image") -> bool:
    """Whether an image is to be inverted.

    Args:
        grey: (H, W).
        ink: one of `INKS`.
        white: the distance from black to white.
        name: what the image is called in the message.

    Raises:
        UserError: the image is to decide, and has one colour.
    """
    low, high = float(grey.min()), float(grey.max())
    if ink == "auto" and (high - low) / white * 255 < LEAST_CONTRAST:
        raise UserError(f"{name} shows nothing but one colour: leave it out, or say what its ink is.")
    return ink == "light" or (ink == "auto" and _paper(grey) < (low + high) / 2)


def as_drawing(
    image: Image.Image,
    image_size: int,
    preprocessing: str = "competition",
    ink: str = "auto",
    name: str = "the image",
) -> tuple[np.ndarray, bool]:
    """An image as a finished drawing.

    Args:
        image: of mode "L" or "RGB" and any size.
        image_size, preprocessing: those of the network's training images.
        ink, name: as of `has_light_ink`.

    Returns:
        (drawing, inverted): uint8 (1, image_size, image_size), and whether light ink was made dark.

    Raises:
        UserError: as `has_light_ink`.
    """
    grey = np.asarray(image.convert("L"))
    inverted = has_light_ink(grey, ink, name=name)
    grey = 255 - grey if inverted else grey
    if grey.shape != (image_size, image_size):
        grey = _square(grey)
        if len(grey) > SIDE:
            grey = np.asarray(Image.fromarray(grey).resize((SIDE, SIDE), Image.BOX))
        grey = resize(_levelled(grey)[None], preprocessing, image_size)[0]
    return grey[None], inverted


def _paper(grey):
    """The median of the pixels at the border."""
    return float(np.median(np.concatenate([grey[0], grey[-1], grey[1:-1, 0], grey[1:-1, -1]])))


def _levelled(grey):
    """The same with white paper and black ink."""
    paper, ink = _paper(grey), float(grey.min())
    if paper - ink < LEAST_CONTRAST:
        return grey
    return np.round(np.clip((grey - ink) * (255 / (paper - ink)), 0, 255)).astype(np.uint8)


def _square(grey):
    """The same in the middle of a square of paper."""
    height, width = grey.shape
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    square = np.full((side, side), round(_paper(grey)), np.uint8)
    square[top : top + height, left : left + width] = grey
    return square
