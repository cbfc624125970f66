"""Drawn characters shaped as Omniglot (alphabets, characters, 20 drawers, 105x105), for use without any
download.

An alphabet has a few shapes of strokes and a habit of joining them; a character is one to four such strokes,
smooth curves through five points; a drawer has a slant, proportions, a pen and an unsteady hand, and draws
each character anew with it.
The same on every platform: randomness comes from raw Philox words, and the geometry uses only the operations
that IEEE 754 rounds exactly (no sine, logarithm or sum of library order). A line is the pixels near its
densely sampled points; Pillow's own lines have changed between its versions.
"""

from __future__ import annotations

import numpy as np

from ..errors import UserError
from .distortion import with_distorted_copies
from .draws import Draws, check_seed, philox_words
from .images import ImageSet
from .preprocessing import check_rule, resize

DRAWERS = 20
SIDE = 105
POINTS = 5
SAMPLES = 160


def draw_synthetic(
    alphabets: int = 15,
    characters: int = 20,
    seed: int = 0,
    preprocessing: str = "competition",
    image_size: int = 28,
    distortions: int = 0,
) -> ImageSet:
    """Draws the synthetic data set.

    Args:
        alphabets: number of alphabets, 1 to 99.
        characters: characters of each alphabet, 1 to 99.
        seed: another seed gives other alphabets; 0 .. 2**64 - 1.
        preprocessing: "competition" or "antialias", see `preprocessing.resize`.
        image_size: height and width, in pixels.
        distortions: distorted copies of each image, see distortion.py; they follow the 20 drawers' own.

    Returns:
        `ImageSet` "synthetic", classes "Synthetic_01/character01" and so on, uint8 (classes,
        20 * (1 + distortions), 1, image_size, image_size).

    Raises:
        UserError: a number out of its range.
    """
    for name, value in (("alphabets", alphabets), ("characters", characters)):
        if not 1 <= value <= 99:
            raise UserError(f"The number of synthetic {name} is {value}, but must be between 1 and 99.")
    check_rule(preprocessing, image_size)
    check_seed(seed)
    classes, images = [], []
    for i in range(1, alphabets + 1):
        for j, drawings in enumerate(_draw_alphabet(seed, i, characters), 1):
            classes.append(f"Synthetic_{i:02d}/character{j:02d}")
            drawings = with_distorted_copies(drawings, distortions, len(images))
            images.append(resize(drawings, preprocessing, image_size)[:, None])
    return ImageSet("synthetic", tuple(classes), np.stack(images))


def _draw_alphabet(seed, number, characters):
    """Yields the drawings of each character, uint8 (20, 105, 105)."""
    hand = _Hand(seed, number)
    shapes, lines = [_shape(hand, _STROKES) for _ in range(7)], [_shape(hand, [_LINE]) for _ in range(3)]
    join, most = hand.uniform(0.5, 0.95), 3 + hand.below(2)
    drawers = _Drawers(hand)
    for i in range(characters):
        # One character of a single stroke: several would often look alike.
        strokes = 2 + hand.below(most - 1) if i else 1
        yield _rasterise(drawers.draw(_character(hand, shapes, lines, join, strokes)), drawers.pen)


class _Hand(Draws):
    """Draws from the words of one alphabet."""

    def __init__(self, seed, number):
        super().__init__(philox_words(seed, number))

    def normal(self, deviation, shape=()):
        """About normal, with mean 0: the sum of three numbers uniform in [-1, 1) has the variance 1."""
        total = self.uniform(-1, 1, shape) + self.uniform(-1, 1, shape) + self.uniform(-1, 1, shape)
        return total * deviation


# Strokes as five points (x to the right, y down): what most scripts are made of. A line is there three times
# because it is common.
_LINE = ((0.0, -0.5), (0.0, -0.25), (0.0, 0.0), (0.0, 0.25), (0.0, 0.5))
_STROKES = (
    _LINE,
    _LINE,
    _LINE,
    ((0.25, -0.5), (-0.15, -0.35), (-0.3, 0.0), (-0.15, 0.35), (0.25, 0.5)),  # arc
    ((0.2, -0.5), (0.2, -0.1), (0.15, 0.3), (-0.1, 0.5), (-0.35, 0.3)),  # hook
    ((-0.3, -0.5), (-0.3, 0.0), (-0.3, 0.5), (0.0, 0.5), (0.35, 0.5)),  # corner
    ((0.3, -0.5), (-0.25, -0.3), (0.0, 0.0), (0.25, 0.3), (-0.3, 0.5)),  # double bend
    ((0.0, -0.4), (-0.4, 0.0), (0.0, 0.4), (0.4, 0.0), (0.0, -0.4)),  # ring
    ((-0.4, 0.5), (-0.35, -0.2), (0.0, -0.5), (0.35, -0.2), (0.4, 0.5)),  # arch
    ((-0.4, -0.4), (0.4, -0.4), (0.0, 0.0), (-0.4, 0.4), (0.4, 0.4)),  # zigzag
)


def _shape(hand, strokes):
    """A stroke of an alphabet, float64 (5, 2): one of the common ones, turned or mirrored, stretched and bent
    a little."""
    shape = np.array(strokes[hand.below(len(strokes))])
    if hand.below(2):
        shape = shape[:, ::-1]
    mirror = np.array([1.0 - 2.0 * hand.below(2), 1.0 - 2.0 * hand.below(2)])
    return shape * mirror * hand.uniform(0.7, 1.2, 2) + hand.normal(0.05, (POINTS, 2))


def _character(hand, shapes, lines, join, count):
    """`count` strokes in a unit box around (0, 0), from the third on straight ones: float64 (count, 5, 2)."""
    strokes = []
    for i in range(count):
        choice = shapes if i < 2 else lines
        shape = choice[hand.below(len(choice))] * hand.uniform(0.45, 1.1) + hand.normal(0.03, (POINTS, 2))
        if strokes and hand.uniform(0, 1) < join:
            # An end or the middle of this stroke lies on a point of an earlier one.
            other, own = strokes[hand.below(len(strokes))], (0, 0, 2, 4)[hand.below(4)]
            shape = shape - shape[own] + other[hand.below(POINTS)]
        else:
            shape = shape + hand.uniform(-0.3, 0.3, 2)
        strokes.append(shape)
    strokes = np.stack(strokes)
    low, high = strokes.min(axis=(0, 1)), strokes.max(axis=(0, 1))
    return (strokes - (low + high) / 2) / (high - low).max()


class _Drawers:
    """The motor habits of an alphabet's 20 drawers."""

    def __init__(self, hand):
        self._hand = hand
        self._size = hand.uniform(48, 74, (DRAWERS, 1, 1))
        self._proportion = 1 + hand.normal(0.1, (DRAWERS, 1, 1))
        self._slant = hand.normal(0.12, (DRAWERS, 1, 1))
        self._turn = hand.normal(0.06, (DRAWERS, 1, 1))
        self._unsteady = hand.uniform(0.01, 0.05, (DRAWERS, 1, 1, 1))
        self.pen = hand.uniform(1.7, 2.1, DRAWERS)

    def draw(self, character):
        """Each drawer's version of a character: sampled lines in pixels, float64 (20, strokes, SAMPLES,
        2)."""
        hand, strokes = self._hand, len(character)
        points = character + self._unsteady * hand.normal(1.0, (DRAWERS, strokes, POINTS, 2))
        points = points + self._unsteady * hand.normal(1.0, (DRAWERS, strokes, 1, 2))
        points = points * (1 + hand.normal(0.05, (DRAWERS, strokes, 1, 1)))
        lines = _curve(points)
        x, y = lines[..., 0], lines[..., 1]
        turn = self._turn + hand.normal(0.03, (DRAWERS, 1, 1))
        x, y = (x + (self._slant - turn) * y) * self._proportion, y + turn * x
        size = self._size * (1 + hand.normal(0.05, (DRAWERS, 1, 1)))
        place = (SIDE - 1) / 2 + hand.normal(4.0, (DRAWERS, 2, 1, 1))
        return np.stack([place[:, 0] + size * x, place[:, 1] + size * y], axis=-1)


def _curve(points):
    """Catmull-Rom curve through the points, the first and last doubled: (..., 5, 2) -> (..., SAMPLES, 2)."""
    at = np.arange(SAMPLES) * ((POINTS - 1) / SAMPLES)
    start = at.astype(np.int64)
    t = (at - start)[:, None]
    a, b, c, d = (points[..., np.clip(start + k, 0, POINTS - 1), :] for k in (-1, 0, 1, 2))
    return b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))


def _rasterise(lines, pen):
    """Inks every pixel whose centre is within the pen's radius of a sample: uint8 (20, 105, 105), ink 0 on
    255."""
    drawer = np.arange(len(lines))[:, None]
    points = np.clip(lines.reshape(len(lines), -1, 2), 2, SIDE - 3)
    pixels = np.rint(points).astype(np.int64)
    offset = pixels - points
    image = np.full((len(lines), SIDE, SIDE), 255, np.uint8)
    for dy in range(-2, 3):
        for dx in range(-2, 3):
            near = (offset[..., 0] + dx) ** 2 + (offset[..., 1] + dy) ** 2 <= (pen * pen)[:, None]
            rows, columns = pixels[..., 1] + dy, pixels[..., 0] + dx
            image[np.broadcast_to(drawer, near.shape)[near], rows[near], columns[near]] = 0
    return image
