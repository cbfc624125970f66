"""Crops and flips of training images: the rule by a plain reading of it, and what it leaves alone."""

import numpy as np
import pytest
from plain_philox import philox

from paddle_maml.data.augmentation import change, changes_of
from paddle_maml.data.episodes import EpisodeBuilder


def numbered(classes=6, images=8, height=24, width=31):
    """uint8 images (classes, images, 2, H, W) of random pixels."""
    numbers = np.random.RandomState(0)
    return numbers.randint(0, 256, (classes, images, 2, height, width)).astype(np.uint8)


def by_the_rule(images, seed, index, crops, flips):
    """Images (N, C, H, W) by the rule, pixel by pixel. No word is so large that it must be passed over."""
    stream, result = philox(seed, 2**63 + index), images.copy()
    height, width = images.shape[2:]
    m, n = height // 10, width // 10
    for image, target in zip(images, result):
        mirrored = next(stream) % 2 if flips else 0
        y, x = (next(stream) % (2 * most + 1) if crops else most for most in (m, n))
        source = image[:, :, ::-1] if mirrored else image
        for i in range(height):
            for j in range(width):
                row, column = min(max(i + y - m, 0), height - 1), min(max(j + x - n, 0), width - 1)
                target[:, i, j] = source[:, row, column]
    return result


@pytest.mark.parametrize("crops, flips", [(True, True), (True, False), (False, True)])
def test_the_rule(crops, flips):
    images = numbered()
    plain = EpisodeBuilder(images, 3, 1, 2, seed=5)
    changed = EpisodeBuilder(images, 3, 1, 2, seed=5, crops=crops, flips=flips)
    for index in (0, 7):
        before, after = plain[index], changed[index]
        both = np.concatenate([before[0], before[2]])  # the support set first
        expected = by_the_rule(both, 5, index, crops, flips)
        np.testing.assert_array_equal(np.concatenate([after[0], after[2]]), expected)
        assert not np.array_equal(expected, both)
        np.testing.assert_array_equal(before[1], after[1])
        assert plain.draw(index) == changed.draw(index)


def test_every_change_occurs_and_each_image_has_its_own():
    image = np.arange(20, dtype=np.uint8).reshape(1, 1, 1, 20) + np.zeros((1, 1, 20, 1), np.uint8)
    changed = change(np.repeat(image, 200, axis=0), changes_of(0, 0), crops=True, flips=True)
    seen = {(int(one[0, 0, 0]), int(one[0, 0, -1])) for one in changed}
    assert seen == {
        (0, 17), (0, 18), (0, 19), (1, 19), (2, 19),
        (17, 0), (18, 0), (19, 0), (19, 1), (19, 2),
    }  # fmt: skip


def test_floating_point_images_and_squares_that_are_turned():
    images = numbered(height=24, width=24).astype(np.float64)
    x = EpisodeBuilder(images, 3, 1, 2, rotations=True, crops=True, flips=True)[0][0]
    assert x.shape == (3, 2, 24, 24) and x.dtype == np.float32
