"""Plots, matrices, sheets of characters and episodes, as Pillow images. Pillow draws them, because the
library needs no plotting package otherwise."""

from __future__ import annotations

import io
import math

import numpy as np
from PIL import Image, ImageDraw

COLOURS = (
    *((31, 97, 166), (214, 96, 20), (60, 140, 60), (120, 120, 120), (150, 60, 160)),
    *((200, 40, 40), (20, 150, 160), (150, 110, 20), (230, 150, 190)),
)
GREY, BLACK = (222, 222, 222), (40, 40, 40)
RIGHT, WRONG = COLOURS[2], COLOURS[5]  # frames of answers

PANEL_WIDTH, PANEL_HEIGHT = 300, 220  # in pixels
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 16, 30, 36  # a panel's margins
_LEGEND = 20


def draw_plots(
    panels: list[tuple[str, dict[str, list[tuple[float, float]]], float]], columns: int
) -> Image.Image:
    """Line plots, side by side, as one image.

    Args:
        panels: list of (title, {name of the line: list of (x, y)}, lowest y that is shown). The same name has
            the same colour in every panel.
        columns: panels in a row.
    """
    names = list(dict.fromkeys(name for _, lines, _ in panels for name in lines))
    colours = dict(zip(names, COLOURS))
    rows = -(-len(panels) // columns)
    image, draw, below = _with_legend(names, PANEL_WIDTH * columns, PANEL_HEIGHT * rows)
    for number, (title, lines, lowest) in enumerate(panels):
        row, column = divmod(number, columns)
        _panel(draw, column * PANEL_WIDTH, row * PANEL_HEIGHT + below, title, lines, lowest, colours)
    return image


def draw_curve(rows: list[dict]) -> Image.Image:
    """The course of a run as an image: loss in training and validation, and accuracy if there is one.

    Args:
        rows: of metrics.csv, as `log.read_metrics` returns them.
    """

    def line(column):
        return [(int(row["iteration"]), float(row[column])) for row in rows if row[column]]

    accuracies = {"training": line("accuracy"), "validation": line("val_accuracy")}
    # A good run spends most of its time near 1.
    best = max([y for _, y in accuracies["validation"]], default=0)
    panels = [
        ("loss", {"training": line("loss"), "validation": line("val_loss")}, 0),
        ("accuracy", accuracies, 0.9 if best > 0.97 else 0.5 if best > 0.8 else 0),
    ]
    panels = panels if accuracies["training"] or accuracies["validation"] else panels[:1]
    return draw_plots(panels, columns=len(panels))


def draw_functions(
    panels: list[tuple[str, dict[str, tuple[np.ndarray, np.ndarray]], tuple[np.ndarray, np.ndarray]]],
) -> Image.Image:
    """Functions beside each other as one image, all on the same axes.

    Args:
        panels: list of (title, {name of a line: (x, y)}, (x, y) of points), arrays. The same name has the
            same colour in every panel.
    """
    names = list(panels[0][1])
    xs, ys = (
        np.concatenate(
            [np.ravel(pair[axis]) for _, lines, points in panels for pair in (*lines.values(), points)]
        )
        for axis in (0, 1)
    )
    image, draw, below = _with_legend(names, PANEL_WIDTH * len(panels), PANEL_HEIGHT)
    width, height = PANEL_WIDTH - _LEFT - _RIGHT, PANEL_HEIGHT - _TOP - _BOTTOM
    for number, (title, lines, points) in enumerate(panels):
        left, top = number * PANEL_WIDTH + _LEFT, below + _TOP

        def place(x, y, left=left, top=top):
            across, up = (x - xs.min()) / np.ptp(xs), (y - ys.min()) / max(np.ptp(ys), 1e-9)
            return left + width * across, top + height * (1 - up)

        draw.text((left, top - 20), title, BLACK)
        draw.rectangle([(left, top), (left + width, top + height)], outline=GREY)
        for value in (xs.min(), xs.max()):
            _centred(draw, (place(value, 0)[0], top + height + 6), f"{value:.1f}")
        for value in (ys.min(), 0.0, ys.max()):
            _centred(draw, (left - _LEFT // 2, place(0, value)[1] - 6), f"{value:.1f}")
        for name, colour in zip(names, COLOURS):
            draw.line([place(x, y) for x, y in zip(*map(np.ravel, lines[name]))], colour, 2)
        for x, y in zip(*map(np.ravel, points)):
            at = place(x, y)
            draw.ellipse([at[0] - 3, at[1] - 3, at[0] + 3, at[1] + 3], BLACK)
    return image


def draw_points(points: list[tuple[str, float, float]], x_title: str, y_title: str) -> Image.Image:
    """Named points, on a logarithmic x axis, as one image.

    Args:
        points: list of (name, x, y), x above 0.
        x_title, y_title: of the axes.
    """
    size, (left, right, top, bottom) = (
        (2 * PANEL_WIDTH, 2 * PANEL_HEIGHT),
        (_LEFT, _RIGHT, _TOP, _BOTTOM + 14),
    )
    exponents = [math.floor(math.log10(min(x for _, x, _ in points)))]
    exponents.append(max(exponents[0] + 1, math.ceil(math.log10(max(x for _, x, _ in points)))))
    lowest, highest = (end(y for _, _, y in points) for end in (min, max))
    step = _step(max(highest - lowest, 1e-9))
    lowest, highest = step * math.floor(lowest / step), step * (math.floor(highest / step) + 1)

    def place(x, y):
        across = (math.log10(x) - exponents[0]) / (exponents[1] - exponents[0])
        up = (y - lowest) / (highest - lowest)
        return left + across * (size[0] - left - right), size[1] - bottom - up * (size[1] - top - bottom)

    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    draw.text((left, 8), y_title, BLACK)
    draw.text((size[0] - right - 6 * len(x_title), size[1] - 18), x_title, BLACK)
    for exponent in range(exponents[0], exponents[1] + 1):
        x = 10.0**exponent
        draw.line([place(x, lowest), place(x, highest)], GREY)
        _centred(draw, (place(x, lowest)[0], size[1] - bottom + 6), f"{x:g}")
    for number in range(round((highest - lowest) / step) + 1):
        y = lowest + number * step
        draw.line([place(10.0 ** exponents[0], y), place(10.0 ** exponents[1], y)], GREY)
        _centred(draw, (left // 2, place(10.0 ** exponents[0], y)[1] - 6), f"{y:g}")
    taken = []
    for number, (name, x, y) in enumerate(points):
        colour, (across, down) = COLOURS[number % len(COLOURS)], place(x, y)
        draw.ellipse([across - 4, down - 4, across + 4, down + 4], colour)
        # To the left where there is no room on the right, and below a name that is there already.
        width = 6 * len(name)
        start = across + 8 if across + 8 + width < size[0] else across - 8 - width
        height = down - 6
        while any(
            abs(height - other) < 12 and start < end and begin < start + width for begin, end, other in taken
        ):
            height += 12
        taken.append((start, start + width, height))
        draw.text((start, height), name, BLACK)
    return image


def draw_sheet(lines: list[tuple[str, list[tuple[np.ndarray, str]]]], zoom: int = 2) -> Image.Image:
    """Lines of small pictures with captions, as one image.

    Args:
        lines: list of (caption, list of (uint8 array (H, W), text under it)).
        zoom: screen pixels for a pixel.
    """
    side = zoom * max((image.shape[0] for _, cells in lines for image, _ in cells), default=1)
    width, height = (
        max(
            [len(caption) * 6 + 16 for caption, _ in lines]
            + [(side + 8) * len(cells) + 8 for _, cells in lines]
        ),
        side + 36,
    )
    sheet = Image.new("RGB", (width, max(1, height * len(lines))), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (caption, cells) in enumerate(lines):
        top = number * height
        draw.text((8, top + 4), _drawable(caption), BLACK)
        for column, (image, text) in enumerate(cells):
            picture = Image.fromarray(image).resize(
                (zoom * image.shape[1], zoom * image.shape[0]), Image.NEAREST
            )
            sheet.paste(picture, (8 + column * (side + 8), top + 18))
            draw.text((8 + column * (side + 8), top + 18 + side), _drawable(text), BLACK)
    return sheet


def draw_episode_table(
    x_spt: np.ndarray,
    y_spt: np.ndarray,
    x_qry: np.ndarray,
    y_qry: np.ndarray,
    predicted: np.ndarray | None = None,
    queries: int = 10,
    zoom: int = 2,
) -> Image.Image:
    """An episode as an image: a row for each class, its support images, then its query images.

    Args:
        x_spt, y_spt, x_qry, y_qry: an item of `EpisodeBuilder`: (N, C, H, W) in [-1, 1] and labels (N,).
        predicted: labels that were predicted for the query images, (N,): those that are right get a green
            frame, the others a red one.
        queries: query images of a class that are shown at most.
        zoom: screen pixels for a pixel.
    """
    shots = [np.flatnonzero(y_spt == label) for label in range(y_spt.max() + 1)]
    asked = [np.flatnonzero(y_qry == label)[:queries] for label in range(len(shots))]
    height, width = x_spt.shape[2] * zoom + 8, x_spt.shape[3] * zoom + 8
    middle = 8 + width * max(map(len, shots)) + 16
    page = Image.new("RGB", (middle + width * max(map(len, asked)), 20 + height * len(shots)), "white")
    draw = ImageDraw.Draw(page)
    draw.text((8, 4), "support", BLACK)
    draw.text((middle, 4), "query", BLACK)
    draw.line([(middle - 12, 4), (middle - 12, page.height - 8)], GREY)
    for row in range(len(shots)):
        top = 20 + row * height
        for left, x, numbers in ((8, x_spt, shots[row]), (middle, x_qry, asked[row])):
            for column, number in enumerate(numbers):
                place = (left + column * width, top)
                page.paste(_picture(x[number], zoom), place)
                if x is x_qry and predicted is not None:
                    frame = RIGHT if predicted[number] == row else WRONG
                    end = (place[0] + width - 7, top + height - 7)
                    draw.rectangle([(place[0] - 2, top - 2), end], outline=frame, width=2)
    return page


def _picture(image, zoom):
    """A network input (C, H, W) in [-1, 1] as a Pillow image, in colour if it has three channels."""
    pixels = np.clip(np.round((image + 1) * 127.5), 0, 255).astype(np.uint8)
    pixels = pixels.transpose(1, 2, 0) if len(pixels) == 3 else pixels.mean(axis=0).astype(np.uint8)
    picture = Image.fromarray(pixels).convert("RGB")
    return picture.resize((zoom * picture.width, zoom * picture.height), Image.NEAREST)


def draw_episode(
    support: list[tuple[np.ndarray, int]], queries: list[tuple[np.ndarray, int, int]], zoom: int = 2
) -> Image.Image:
    """A strip of an episode: the support set, a gap, and the query set, each image in a frame of its class's
    colour or of the answer's. A wrong answer is crossed out. The ground is transparent, for any page.

    Args:
        support: list of (uint8 array (H, W), class).
        queries: list of (uint8 array (H, W), class, answer).
        zoom: screen pixels for a pixel.
    """
    frame, space, gap, line = 4, 6, 34, 16
    side = zoom * support[0][0].shape[0] + 2 * frame
    tiles = [(image, label, True) for image, label in support]
    tiles += [(image, answer, answer == label) for image, label, answer in queries]
    width = len(tiles) * (side + space) - space + gap
    strip = Image.new("RGBA", (width, side + line))
    draw, x = ImageDraw.Draw(strip), 0
    for number, (image, label, right) in enumerate(tiles):
        if number in (0, len(support)):
            x += gap if number else 0
            # Grey is read on white and on black.
            text = "query set, in the colours of the answers" if number else "support set"
            draw.text((x, 0), text, (128, 128, 128))
        colour, inner = COLOURS[label % len(COLOURS)], side - 2 * frame
        draw.rectangle([x, line, x + side - 1, line + side - 1], colour)
        strip.paste(Image.fromarray(image).resize((inner, inner), Image.NEAREST), (x + frame, line + frame))
        if not right:
            draw.line([(x, line), (x + side, line + side)], BLACK, 3)
            draw.line([(x, line + side), (x + side, line)], BLACK, 3)
        x += side + space
    return strip


def draw_matrix(matrix: np.ndarray, names: list[str], titles: tuple[str, str], cell: int = 11) -> Image.Image:
    """A square matrix as an image: white for 0 and dark for its largest entry.

    Args:
        matrix: float (n, n), not negative.
        names: of the rows and columns.
        titles: what the rows are, and what the columns are.
        cell: height and width of an entry in pixels.
    """
    size, margin = cell * len(matrix), 12 + 6 * max(map(len, [*names, "columns: " + titles[1]]))
    shade = 255 - np.round(225 * matrix / max(matrix.max(), 1e-12)).astype(np.uint8)
    image = Image.new("RGB", (margin + size + 8, margin + size + 8), "white")
    image.paste(Image.fromarray(shade).resize((size, size), Image.NEAREST), (margin, margin))
    draw = ImageDraw.Draw(image)
    for number in range(len(matrix) + 1):
        place = margin + cell * number
        draw.line([(margin, place), (margin + size, place)], GREY)
        draw.line([(place, margin), (place, margin + size)], GREY)
    columns = Image.new("RGB", (margin, size), "white")  # turned when all names are there
    for number, name in enumerate(map(_drawable, names)):
        draw.text((margin - 6 - 6 * len(name), margin + cell * number), name, BLACK)
        ImageDraw.Draw(columns).text((6, cell * number), name, BLACK)
    image.paste(columns.transpose(Image.ROTATE_90), (margin, 0))
    for number, line in enumerate(
        [f"rows: {titles[0]}", f"columns: {titles[1]}", f"darkest: {matrix.max():.1%}"]
    ):
        draw.text((8, 8 + 14 * number), line, BLACK)
    return image


def stacked(images: list[Image.Image]) -> Image.Image:
    """Images under one another, as one."""
    whole = Image.new(
        "RGB", (max(image.width for image in images), sum(image.height for image in images)), "white"
    )
    top = 0
    for image in images:
        whole.paste(image, (0, top))
        top += image.height
    return whole


def png(image: Image.Image) -> bytes:
    """The bytes of a PNG file."""
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def _with_legend(names, width, height):
    """A white image of a height below a legend, which has as many rows as its names need; the pen; and the
    legend's height."""
    places, x, y = [], 36, 0
    for name in names:
        wide = 48 + 6 * len(name)
        if x > 36 and x + wide > width:
            x, y = 36, y + _LEGEND
        places.append((x, y))
        x += wide
    image = Image.new("RGB", (width, y + _LEGEND + height), "white")
    draw = ImageDraw.Draw(image)
    for name, colour, (x, y) in zip(names, COLOURS, places):
        draw.line([(x, y + 11), (x + 18, y + 11)], colour, 2)
        draw.text((x + 24, y + 5), name, BLACK)
    return image, draw, y + _LEGEND


def _panel(draw, left, top, title, lines, lowest, colours):
    """One plot, the x axis from zero."""
    draw.text((left + _LEFT, top + 10), title, BLACK)
    points = [point for line in lines.values() for point in line]
    if not points:
        return
    x_end, step = max(x for x, _ in points) or 1, _step(max(y for _, y in points) - lowest)
    parts = max(1, -(-(max(y for _, y in points) - lowest) // step))

    def place(x, y):
        share = (y - lowest) / (parts * step)
        return (
            left + _LEFT + x / x_end * (PANEL_WIDTH - _LEFT - _RIGHT),
            top + PANEL_HEIGHT - _BOTTOM - share * (PANEL_HEIGHT - _TOP - _BOTTOM),
        )

    for number in range(round(parts) + 1):
        value = lowest + number * step
        draw.line([place(0, value), place(x_end, value)], GREY)
        _centred(draw, (left + _LEFT // 2, place(0, value)[1] - 6), f"{value:g}")
    drawn, ticks = -_LEFT, sorted({x for x, _ in points})
    if len(ticks) > 10:
        ticks = range(0, x_end + 1, max(1, int(_step(x_end))))
    for x in ticks:
        # Small values lie close together; a label needs some room.
        if place(x, lowest)[0] - drawn >= 10 + 6 * len(str(x)):
            drawn = place(x, lowest)[0]
            _centred(draw, (drawn, place(0, lowest)[1] + 6), str(x))
    for name, line in lines.items():
        line = sorted(line)
        for one, other in zip(line, line[1:]):
            if max(one[1], other[1]) > lowest:
                draw.line(
                    [place(*_raised(one, other, lowest)), place(*_raised(other, one, lowest))],
                    colours[name],
                    2,
                )
        for x, y in [place(x, y) for x, y in line if y >= lowest] if len(line) <= 30 else []:
            draw.ellipse([x - 3, y - 3, x + 3, y + 3], colours[name])


def _raised(point, other, lowest):
    """A point, or where the line from it to another one, which lies higher, comes to be shown."""
    (x, y), (other_x, other_y) = point, other
    return point if y >= lowest else (x + (other_x - x) * (lowest - y) / (other_y - y), lowest)


def _step(most):
    """A distance of 1, 2 or 5 times a power of ten that divides 0 .. most into three to seven parts."""
    step = 10.0**-9
    while True:
        for factor in (1, 2, 5):
            if most <= 6 * factor * step:
                return factor * step
        step *= 10


def _centred(draw, place, text):
    # Pillow 9.1 cannot measure text in its own font; a character is about 6 pixels wide.
    draw.text((place[0] - 3 * len(text), place[1]), text, BLACK)


def _drawable(text):
    # Pillow's own font has Latin letters alone; before 10.1 others, as of a user's folders, are an error.
    return text.encode("latin-1", "replace").decode("latin-1")
