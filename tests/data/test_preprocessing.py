"""Resizing, orientation and scaling."""

import hashlib

import numpy as np
import pytest

from paddle_maml.data.preprocessing import orient, orientations, resize, to_network_input
from paddle_maml.errors import UserError


def drawings(count=3, height=105, width=105):
    """Black and white noise in blocks, the same everywhere."""
    rows, columns = np.arange(height)[:, None], np.arange(width)
    bits = [((rows // 3 * 7 + columns // 2 * (5 + i) + rows * columns // 50) % 11 < 4) for i in range(count)]
    return np.where(bits, 0, 255).astype(np.uint8)


def one_pixel(image, row, column, size):
    """The competition's rule for one output pixel, in Python integers, as it stands in OpenCV."""

    def taps(i, length):
        position = min(max((i + 0.5) * (length / size) - 0.5, 0), length - 1)
        first = int(position)
        return (
            first,
            min(first + 1, length - 1),
            round((1 - (position - first)) * 2048),
            round((position - first) * 2048),
        )

    top, bottom, upper, lower = taps(row, image.shape[0])
    left, right, keep, take = taps(column, image.shape[1])
    h_top, h_bottom = (int(image[r, left]) * keep + int(image[r, right]) * take for r in (top, bottom))
    return (((upper * (h_top >> 4)) >> 16) + ((lower * (h_bottom >> 4)) >> 16) + 2) >> 2


@pytest.mark.parametrize("size", [28, 14, 105])
def test_competition_rule_pixel_by_pixel(size):
    images = drawings(2)
    resized = resize(images, "competition", size)
    assert resized.dtype == np.uint8 and resized.shape == (2, size, size)
    for row in range(0, size, 3):
        for column in range(size):
            assert resized[1, row, column] == one_pixel(images[1], row, column, size)


def test_same_size_changes_nothing():
    assert np.array_equal(resize(drawings(), "competition", 105), drawings())


def test_height_and_width_are_not_mixed_up():
    images = drawings(1, height=50, width=80)
    resized = resize(images, "competition", 20)
    assert [[one_pixel(images[0], row, column, 20) for column in range(20)] for row in range(20)] == resized[
        0
    ].tolist()


def test_golden():
    assert hashlib.sha256(resize(drawings(), "competition").tobytes()).hexdigest() == GOLDEN_COMPETITION
    assert hashlib.sha256(resize(drawings(), "antialias").tobytes()).hexdigest() == GOLDEN_ANTIALIAS


def test_antialias_weighs_all_pixels():
    image = np.full((1, 105, 105), 255, np.uint8)
    image[0, ::3] = 0
    assert np.ptp(resize(image, "competition")[0, 5:-5]) > 200
    assert np.ptp(resize(image, "antialias")[0, 5:-5].astype(int)) < 100


def test_bad_rule_and_size():
    with pytest.raises(UserError, match="nearest"):
        resize(drawings(), "nearest")
    with pytest.raises(UserError, match="0"):
        resize(drawings(), "competition", 0)


def test_rotation_is_counter_clockwise():
    image = np.array([[1, 2], [3, 4]])
    assert orient(image, 1).tolist() == [[2, 4], [1, 3]]
    assert orient(np.stack([image] * 2)[:, None], 3)[1, 0].tolist() == [[3, 1], [4, 2]]


def test_a_reflection_comes_before_the_rotation():
    image = np.array([[1, 2], [3, 4]])
    assert orient(image, 4).tolist() == [[2, 1], [4, 3]]
    assert orient(image, 5).tolist() == [[1, 3], [2, 4]]
    assert len({orient(image, orientation).tobytes() for orientation in orientations(True, True)}) == 8
    assert [list(orientations(*which)) for which in ((False, False), (True, False), (False, True))] == [
        [0],
        [0, 1, 2, 3],
        [0, 4],
    ]


def test_network_input():
    values = np.arange(256, dtype=np.uint8)
    scaled = to_network_input(values)
    assert scaled.dtype == np.float32 and scaled[0] == -1 and scaled[255] == 1
    assert np.array_equal(scaled, values.astype(np.float32) / np.float32(255) * np.float32(2) - np.float32(1))


GOLDEN_COMPETITION = "87a0873999b36e4a22ccfe4c86d92b2f6f84682e86f925ba2bf86913deaed4dd"
GOLDEN_ANTIALIAS = "43870428a90bedf8f6a618c095ced62c0f0226d3cead954c28afb9344682cb71"
