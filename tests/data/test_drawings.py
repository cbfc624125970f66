"""A user's drawings become what a network was trained on, whatever their size, ink and paper."""

import numpy as np
import pytest
from drawn import drawings
from PIL import Image

from paddle_maml.data.drawings import as_drawing
from paddle_maml.data.preprocessing import resize
from paddle_maml.errors import UserError


@pytest.fixture(scope="module")
def drawn():
    return drawings().reshape(-1, 105, 105)


def finished(array, *more, **options):
    return as_drawing(Image.fromarray(array), 28, *more, **options)


@pytest.mark.parametrize("rule", ["competition", "antialias"])
def test_a_drawing_like_omniglots_is_made_as_in_training(drawn, rule):
    for image in drawn:
        found, inverted = finished(image, rule)
        assert np.array_equal(found, resize(image[None], rule, 28)) and not inverted
        again, inverted = finished(255 - image, rule)
        assert np.array_equal(again, found) and inverted


def test_a_finished_image_stays(drawn):
    for image in resize(drawn, "competition", 28):
        for given, is_inverted in ((image, False), (255 - image, True)):
            found, inverted = finished(given)
            assert np.array_equal(found[0], image) and inverted == is_inverted


def test_other_sizes_papers_and_colours_are_nearly_the_same(drawn):
    image = drawn[0]
    expected = resize(image[None], "competition", 28).astype(float)

    def distance(given):
        return np.abs(finished(given)[0] - expected).mean() / (255 - expected).mean()

    assert finished(np.pad(image, ((0, 0), (40, 40)), constant_values=255))[0].shape == (1, 28, 28)
    assert distance(np.kron(image, np.ones((4, 4), np.uint8))) == 0
    assert distance((150 + image.astype(int) * 60 // 255).astype(np.uint8)) < 0.01  # pencil on grey paper
    assert distance(np.stack([image, image, np.full_like(image, 200)], axis=2)) < 0.01  # blue on yellow
    quarter = np.kron(np.ones((105, 105), np.uint8), np.pad(np.ones((2, 2), np.uint8), (0, 2)))
    thin = 255 - np.kron(255 - image, np.ones((4, 4), np.uint8)) * quarter
    assert distance(thin) < 0.01


def test_the_ink_can_be_said(drawn):
    image = drawn[0]
    assert finished(image, ink="light")[1] and not finished(255 - image, ink="dark")[1]
    assert np.array_equal(finished(255 - image, ink="light")[0], finished(image)[0])
    blank = np.full((50, 50), 7, np.uint8)
    assert (finished(blank, ink="dark")[0] == 7).all()
    with pytest.raises(UserError, match="page 3 shows nothing but one colour"):
        finished(blank, name="page 3")


@pytest.mark.slow
def test_ink_and_paper_of_omniglot_are_told_apart(omniglot):
    """All 32,460 finished images: the rule inverts none, and none looks like one from 0 to 1."""
    for image in omniglot.images.reshape(-1, 28, 28):
        assert not finished(image)[1]
    assert (omniglot.images.min(axis=(2, 3, 4)) < 128).all()
