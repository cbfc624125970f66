"""From sketches to answers: one example of each of a few characters, and which of them a new one is."""

from __future__ import annotations

import base64
import struct
from typing import Any, NamedTuple

import numpy as np

from ..data.image_files import decode_image
from ..data.omniglot import SIDE
from ..errors import UserError
from ..inference.classifier import Classifier

MOST_CHARACTERS = 5
#: Pixels of a sketch's side and of its lines: twice those of Omniglot's drawings, so that edges are smooth.
#: With thinner lines more answers are wrong (tests/page/test_answers.py).
SKETCH, LINE = 2 * SIDE, 11
# What is no drawing: more ink than this fraction of the paper, or a spot smaller than this part of a side.
_MOST_INK, _LEAST_SIZE = 1 / 3, 1 / 10
# After how many inner steps the answer is shown at least; weights may be made for fewer.
_STEPS_SHOWN = 5
# How a PNG of a sketch's size begins, and the URL of one; noise all over a sketch has fewer characters.
_PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", SKETCH, SKETCH)
_URL, _LONGEST = "data:image/png;base64,", 400_000


class Answer(NamedTuple):
    """What a new character is taken for. Probabilities are float64, rows of sum 1."""

    characters: tuple[int, ...]  # the places that have an example, counted from 1: the columns
    probabilities: np.ndarray  # (characters,)
    by_example: list[np.ndarray]  # (2,), (3,) .. (characters,): with the first 2, 3, .. of the examples
    by_step: list[np.ndarray]  # (characters,) each, after 0, 1, .. inner steps; none of learners without
    steps: int | None  # the inner steps of `probabilities`

    @property
    def character(self) -> int:
        """The most probable one."""
        return self.characters[self.probabilities.argmax()]


def places(classifier: Classifier) -> int:
    """For how many characters there is a place on the page."""
    return min(classifier.n_way or MOST_CHARACTERS, MOST_CHARACTERS)


def read_sketch(url: Any) -> np.ndarray:
    """A sketch as a browser sends it, uint8 (SKETCH, SKETCH), black ink on white.

    Args:
        url: the text of a data URL of a PNG of that size, as a canvas gives it.

    Raises:
        UserError: it is none.
    """
    wrong = UserError(f"That is no sketch: send a PNG of {SKETCH}x{SKETCH} pixels as a data URL.")
    if not isinstance(url, str) or not url.startswith(_URL) or len(url) > _LONGEST:
        raise wrong
    try:
        data = base64.b64decode(url[len(_URL) :], validate=True)
        if not data.startswith(_PNG):  # no pixel of another size is decoded
            raise wrong
        return np.asarray(decode_image(data, "the sketch").convert("L"))
    except (ValueError, UserError):
        raise wrong from None


def answer(classifier: Classifier, sketches: list[np.ndarray]) -> Answer:
    """Learn from the examples, and say what the new character is.

    Args:
        classifier: as `paddle_maml.load` gives it.
        sketches: uint8 (H, W), black ink on white: an example of a character in each of the `places`, some of
            which may be empty, and last the new character.

    Raises:
        UserError: fewer than two examples, an empty place for the new character, or what is no drawing.
    """
    *examples, query = sketches
    drawn = {number: sketch for number, sketch in enumerate(examples, 1) if (sketch < 128).any()}
    if len(drawn) < 2:
        raise UserError(
            f"Draw one example each of at least two characters: there {'is' if len(drawn) == 1 else 'are'} "
            f"{len(drawn)}."
        )
    for number, sketch in drawn.items():
        _check(sketch, f"Example {number}")
    _check(query, "The new character")
    characters, support = tuple(drawn), list(drawn.values())

    def probabilities(count, steps=None):
        task = classifier.adapt(support[:count], characters[:count], ink="dark", steps=steps)
        return task.predict(query).probabilities[0]

    by_example = [probabilities(count) for count in range(2, len(support) + 1)]
    own = classifier.settings.steps_at_test
    shown = [] if own is None else range(max(own, _STEPS_SHOWN) + 1)
    by_step = [probabilities(len(support), steps) for steps in shown]
    return Answer(characters, by_example[-1], by_example, by_step, own)


def _check(sketch, name):
    """UserError unless it is a drawing."""
    ink = sketch < 128
    if not ink.any():
        raise UserError(f"{name} is empty: draw it.")
    if ink.mean() > _MOST_INK:
        raise UserError(f"{name} is mostly black: clear it, and draw it in lines.")
    if max(map(np.ptp, np.nonzero(ink))) < _LEAST_SIZE * len(sketch):
        raise UserError(f"{name} is only a spot: draw it about as large as its place.")
