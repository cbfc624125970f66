"""Pictures show what they are given: the right colours at the right places."""

import io

import numpy as np
import pytest
from PIL import Image

from paddle_maml.report import pictures


def pixels(image, colour):
    """Places (x, y) of a colour."""
    array = np.asarray(image)
    return np.argwhere((array == colour).all(axis=-1))[:, ::-1]


def test_a_matrix_is_dark_where_it_is_large():
    matrix = np.zeros((3, 3))
    matrix[0, 2], matrix[2, 1] = 0.5, 0.25
    image = pictures.draw_matrix(matrix, ["a", "b", "c"], ("row", "column"), cell=10)
    start = image.width - 8 - 30
    shades = np.asarray(image)[start + 5 : start + 30 : 10, start + 5 : start + 30 : 10, 0]
    assert shades.tolist() == [[255, 255, 30], [255, 255, 255], [255, 143, 255]]


def test_a_matrix_of_zeros_is_white():
    image = pictures.draw_matrix(np.zeros((2, 2)), ["a", "b"], ("row", "column"))
    assert np.asarray(image)[-14, -14].tolist() == [255, 255, 255]


def test_a_line_is_shown_from_where_it_comes_above_the_lowest_value():
    assert pictures._raised((0, 0.0), (100, 0.9), 0.45) == pytest.approx((50, 0.45))
    assert pictures._raised((1, 0.7), (2, 0.2), 0.5) == (1, 0.7)
    places = pixels(
        pictures.draw_plots([("", {"line": [(0, 0.0), (100, 0.9), (200, 1.0)]}, 0.9)], 1), pictures.COLOURS[0]
    )
    places = places[places[:, 1] > pictures._LEGEND]  # without the legend
    # Nothing of the way from 0 to 0.9, where only the second half of the axis has values, and nothing below
    # the axis.
    width = pictures.PANEL_WIDTH - pictures._LEFT - pictures._RIGHT
    assert places[:, 0].min() >= pictures._LEFT + width / 2 - 4
    assert places[:, 1].max() <= pictures._LEGEND + pictures.PANEL_HEIGHT - pictures._BOTTOM + 4


def test_an_episode_has_frames_in_the_colours_of_the_answers():
    cell = np.full((5, 5), 77, np.uint8)
    strip = pictures.draw_episode([(cell, 0), (cell, 1)], [(cell, 0, 0), (cell, 0, 1)], zoom=4)
    first, second = (pixels(strip, (*pictures.COLOURS[number], 255)) for number in (0, 1))
    assert len(first) == 2 * (28 * 28 - 20 * 20)  # 4 pixels around 20 by 20
    crossed = pixels(strip, (*pictures.BLACK, 255))
    assert len(crossed) and crossed[:, 0].min() >= second[:, 0].max() - 28
    assert np.asarray(strip)[-1, 28 + 3, 3] == 0  # nothing between two images


def test_a_sheet_has_its_images_and_images_stand_under_one_another():
    cell = np.full((5, 4), 77, np.uint8)
    sheet = pictures.draw_sheet([("caption", [(cell, "a"), (cell, "b")])], zoom=3)
    assert len(pixels(sheet, (77, 77, 77))) == 2 * 15 * 12
    both = pictures.stacked([sheet, sheet])
    assert both.height == 2 * sheet.height and len(pixels(both, (77, 77, 77))) == 4 * 15 * 12
    with Image.open(io.BytesIO(pictures.png(both))) as read:
        assert read.format == "PNG" and (np.asarray(read) == np.asarray(both)).all()


def test_plots_of_nothing_and_of_one_point_are_drawn():
    for points in ([], [(1, 0.5)]):
        pictures.draw_plots([("nothing", {"line": points}, 0)], 1)


def test_points_stand_where_their_numbers_are():
    image = pictures.draw_points([("fast", 1.0, 90.0), ("slow", 100.0, 99.0)], "ms", "%")
    (x, y), (x_end, y_end) = (pixels(image, colour).mean(axis=0) for colour in pictures.COLOURS[:2])
    assert x_end - x > 200 and y - y_end > 100


def test_names_of_points_that_lie_together_do_not_cover_each_other():
    rows = []
    for names in (["one"], ["one", "two"]):
        image = pictures.draw_points([(name, 10.0, 50.0) for name in names], "", "")
        # Beside the points there are their names alone.
        x, y = (int(place) for place in pixels(image, pictures.COLOURS[len(names) - 1]).mean(axis=0))
        beside = np.asarray(image.convert("L"))[y - 20 : y + 30, x + 8 : x + 26]
        rows.append(int((beside < 150).any(axis=1).sum()))
    assert rows[1] >= rows[0] + 5 > 5
