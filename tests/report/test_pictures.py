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


def test_an_episode_has_a_row_for_each_class_and_frames_around_answers():
    # Two classes, not in order, with 1 and 2 support images, 3 query images each; colours tell them apart.
    def image(*colour):
        return np.broadcast_to(np.array(colour, np.float32)[:, None, None] / 127.5 - 1, (3, 4, 4))

    red, blue, violet = (200, 0, 0), (0, 0, 200), (200, 0, 200)
    x_spt, y_spt = np.stack([image(*blue), image(*red), image(*blue)]), np.array([1, 0, 1])
    x_qry, y_qry = np.stack([image(*violet)] * 6), np.array([0, 0, 0, 1, 1, 1])
    page = pictures.draw_episode_table(
        x_spt, y_spt, x_qry, y_qry, np.array([0, 1, 0, 1, 1, 1]), queries=2, zoom=3
    )
    size = 3 * 4
    assert len(pixels(page, red)) == size**2 and len(pixels(page, blue)) == 2 * size**2
    assert len(pixels(page, violet)) == 4 * size**2  # two of a class
    assert pixels(page, red)[:, 1].max() < pixels(page, blue)[:, 1].min()
    assert pixels(page, blue)[:, 0].max() < pixels(page, violet)[:, 0].min()
    frame = (size + 4) ** 2 - size**2
    assert [len(pixels(page, colour)) for colour in (pictures.RIGHT, pictures.WRONG)] == [3 * frame, frame]
    plain = pictures.draw_episode_table(x_spt.mean(axis=1, keepdims=True), y_spt, x_qry[:, :1], y_qry)
    assert not len(pixels(plain, pictures.RIGHT)) and len(pixels(plain, (200, 200, 200))) == 6 * 8**2


def test_names_that_the_font_has_no_letters_for_are_drawn_as_question_marks():
    cell = np.zeros((4, 4), np.uint8)
    sheets = [pictures.draw_sheet([(name + " é", [(cell, name)])]) for name in ("\u5c71", "?")]
    np.testing.assert_array_equal(*map(np.asarray, sheets))
    matrices = [pictures.draw_matrix(np.eye(1), [name], ("row", "column")) for name in ("\u5c71", "?")]
    np.testing.assert_array_equal(*map(np.asarray, matrices))


def test_a_legend_of_many_names_has_further_rows():
    names = [f"the name of line {number}" for number in range(len(pictures.COLOURS))]
    image = pictures.draw_plots([("", {name: [(0, 1.0), (1, 1.0)] for name in names}, 0)] * 2, 2)
    below = image.height - pictures.PANEL_HEIGHT
    for colour in pictures.COLOURS:
        assert len(pixels(image.crop((0, 0, image.width, below)), colour)) >= 30
