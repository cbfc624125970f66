"""The drawn data set: the same everywhere, shaped as Omniglot, different where it should be."""

import hashlib

import numpy as np
import pytest

from paddle_maml.data import synthetic
from paddle_maml.data.synthetic import draw_synthetic
from paddle_maml.errors import UserError

# SHA-256 of the array drawn below, also that of 105x105 drawings, so that a change of the drawing shows
# before resizing.
GOLDEN_DRAWINGS = "1a50cf20ba401429248a4c5de91eb4b8388911ebc4b9b65195ecc283861b2c30"
GOLDEN = "93df565c1222682d9ba2a3624201d1d1a947e9deb09550032cb2ac770dbf5d15"


@pytest.fixture(scope="module")
def drawn():
    return draw_synthetic(alphabets=4, characters=8)


def test_shape_and_names(drawn):
    assert drawn.name == "synthetic"
    assert drawn.images.shape == (32, 20, 1, 28, 28) and drawn.images.dtype == np.uint8
    assert drawn.classes[0] == "Synthetic_01/character01" and drawn.classes[-1] == "Synthetic_04/character08"
    assert list(drawn.classes) == sorted(drawn.classes)


def test_golden(drawn):
    drawings = np.stack(list(synthetic._draw_alphabet(0, 1, 3)))
    assert drawings.shape == (3, 20, 105, 105) and set(np.unique(drawings)) == {0, 255}
    assert hashlib.sha256(drawings.tobytes()).hexdigest() == GOLDEN_DRAWINGS
    assert hashlib.sha256(drawn.images.tobytes()).hexdigest() == GOLDEN


def test_a_larger_set_begins_with_the_smaller(drawn):
    larger = draw_synthetic(alphabets=5, characters=8)
    assert np.array_equal(larger.images[:32], drawn.images)


def test_another_seed_draws_other_alphabets(drawn):
    other = draw_synthetic(alphabets=4, characters=8, seed=1)
    assert not any((other.images[i] == drawn.images[i]).all() for i in range(32))


def test_every_drawing_has_ink_and_is_different(drawn):
    images = drawn.images.reshape(len(drawn.classes) * 20, -1)
    assert ((images < 128).mean(axis=1) > 0.005).all() and ((images < 128).mean(axis=1) < 0.4).all()
    assert len(np.unique(images, axis=0)) == len(images)


def test_a_character_resembles_itself_more_than_another(drawn):
    """Nearest neighbour of blurred drawings: well above the chance of 1 in 32, so that there is something to
    learn."""
    images = 255 - draw_synthetic(
        alphabets=4, characters=8, preprocessing="antialias", image_size=8
    ).images.reshape(32, 20, -1).astype(float)
    known, asked = images[:, :10].reshape(320, -1), images[:, 10:].reshape(320, -1)
    nearest = ((asked[:, None] - known[None]) ** 2).sum(axis=2).argmin(axis=1) // 10
    assert (nearest == np.arange(320) // 10).mean() > 0.3


@pytest.mark.parametrize(
    "wrong",
    [
        {"alphabets": 0},
        {"alphabets": 100},
        {"characters": 0},
        {"seed": -1},
        {"image_size": 0},
        {"preprocessing": "none"},
    ],
)
def test_bad_numbers(wrong):
    with pytest.raises(UserError):
        draw_synthetic(**wrong)
