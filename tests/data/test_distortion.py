"""Distorted copies: the written rule, one pixel at a time; only training sees them."""

import hashlib
import math
from fractions import Fraction

import numpy as np
import pytest

from paddle_maml.data import distortion
from paddle_maml.data.distortion import with_distorted_copies
from paddle_maml.data.draws import Draws, philox_words
from paddle_maml.data.synthetic import draw_synthetic
from paddle_maml.engine.assembly import load_images, load_training_images
from paddle_maml.engine.settings import settings_from_preset

# SHA-256 of draw_synthetic(alphabets=2, characters=2, distortions=2).images
GOLDEN = "6b4605ff34209ca7e4772b68501f9d5658fa4d9e21dd8c3fa7548d83752007e4"


def by_the_rule(drawings, copies, number):
    """The rule of the module's docstring in fractions."""
    draws, side, copied = Draws(philox_words(2015, number)), drawings.shape[-1], []
    s = Fraction(side - 1, 2)
    for _ in range(copies):
        for drawing in drawings:
            a, b, c, d = [draws.below(103) - 51 for _ in range(4)]
            y, x = [draws.below(13) - 6 for _ in range(2)]
            copy = np.full_like(drawing, 255)
            for i in range(side):
                for j in range(side):
                    row = s + y + Fraction(256 + a, 256) * (i - s) + Fraction(b, 256) * (j - s)
                    column = s + x + Fraction(c, 256) * (i - s) + Fraction(256 + d, 256) * (j - s)
                    row, column = (math.floor(value + Fraction(1, 2)) for value in (row, column))
                    if 0 <= row < side and 0 <= column < side:
                        copy[i, j] = drawing[row, column]
            copied.append(copy)
    return np.stack(copied)


@pytest.mark.parametrize("side", [14, 15])
def test_the_rule(side):
    drawings = np.random.RandomState(side).choice(np.uint8([0, 255]), (3, side, side))
    result = with_distorted_copies(drawings, 2, number=side)
    assert result.shape == (9, side, side) and result.dtype == np.uint8
    np.testing.assert_array_equal(result[:3], drawings)
    np.testing.assert_array_equal(result[3:], by_the_rule(drawings, 2, side))


def test_no_distortion_is_the_drawing_itself(monkeypatch):
    drawings = np.random.RandomState(0).choice(np.uint8([0, 255]), (2, 8, 8))
    monkeypatch.setattr(distortion, "MOST_SLOPE", 0)
    monkeypatch.setattr(distortion, "MOST_SHIFT", 0)
    np.testing.assert_array_equal(with_distorted_copies(drawings, 1, 0), np.concatenate([drawings, drawings]))


def test_golden():
    images = draw_synthetic(alphabets=2, characters=2, distortions=2)
    assert images.images.shape == (4, 60, 1, 28, 28)
    assert (images.images[:, :20] == draw_synthetic(alphabets=2, characters=2).images).all()
    assert hashlib.sha256(images.images.tobytes()).hexdigest() == GOLDEN


def test_only_training_classes_have_copies():
    settings = settings_from_preset("quickstart", distortions=1)
    plain, _ = load_images(settings)
    parts, rule = load_training_images(settings)
    assert rule == "synthetic"
    assert parts["train"].classes == plain["train"].classes
    assert [parts[part].images.shape[1] for part in ("train", "val", "test")] == [40, 20, 20]
    assert all((parts[part].images[:, :20] == plain[part].images).all() for part in parts)
