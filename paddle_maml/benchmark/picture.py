"""Line plots of a scaling run as a PNG. Pillow draws them, because the library needs no plotting package otherwise."""
from __future__ import annotations

from PIL import Image, ImageDraw

WIDTH, HEIGHT = 300, 220  # of one panel, in pixels
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 30, 36  # its margins
COLOURS = {1: (31, 97, 166), 2: (214, 96, 20)}
GREY, BLACK = (222, 222, 222), (40, 40, 40)
MEASURES = (("median_s", "seconds a meta-iteration", 1), ("peak_memory_bytes", "peak memory above imports, MiB", 1 << 20))


def draw_scaling(rows, path):
    """Write the picture.

    Args:
        rows: of `scaling.scale`.
        path: of the PNG file.
    """
    quantities = list(dict.fromkeys(row["quantity"] for row in rows))
    image = Image.new("RGB", (WIDTH * len(quantities), HEIGHT * len(MEASURES) + 20), "white")
    draw = ImageDraw.Draw(image)
    for order, x in ((1, 60), (2, 160)):
        draw.line([(x - 24, 11), (x - 6, 11)], COLOURS[order], 2)
        draw.text((x, 5), f"order {order}", BLACK)
    for column, quantity in enumerate(quantities):
        for line, (measure, title, unit) in enumerate(MEASURES):
            lines = {order: [(row["value"], row[measure] / unit) for row in rows
                             if row["quantity"] == quantity and row["order"] == order and row[measure] is not None] for order in COLOURS}
            _panel(draw, column * WIDTH, line * HEIGHT + 20, f"{quantity}: {title}", lines)
    image.save(path, "PNG")


def _panel(draw, left, top, title, lines):
    """One plot, both axes from zero."""
    draw.text((left + LEFT, top + 10), title, BLACK)
    points = [point for line in lines.values() for point in line]
    if not points:
        return
    x_end, y_step = max(x for x, _ in points), _step(max(y for _, y in points))
    y_end = y_step * -(-max(y for _, y in points) // y_step) or y_step

    def place(x, y):
        return (left + LEFT + x / x_end * (WIDTH - LEFT - RIGHT), top + HEIGHT - BOTTOM - y / y_end * (HEIGHT - TOP - BOTTOM))

    for number in range(round(y_end / y_step) + 1):
        value = number * y_step
        draw.line([place(0, value), place(x_end, value)], GREY)
        _centred(draw, (left + LEFT // 2, place(0, value)[1] - 6), f"{value:g}")
    drawn = -LEFT
    for x in sorted({x for x, _ in points}):
        # Small values lie close together; a label needs some room.
        if place(x, 0)[0] - drawn >= 16:
            drawn = place(x, 0)[0]
            _centred(draw, (drawn, place(0, 0)[1] + 6), str(x))
    for order, line in lines.items():
        spots = [place(x, y) for x, y in sorted(line)]
        draw.line(spots, COLOURS[order], 2)
        for x, y in spots:
            draw.ellipse([x - 3, y - 3, x + 3, y + 3], COLOURS[order])


def _step(most):
    """A distance of 1, 2 or 5 times a power of ten that divides 0 .. most into three to seven parts."""
    step = 10.0 ** -9
    while True:
        for factor in (1, 2, 5):
            if most <= 6 * factor * step:
                return factor * step
        step *= 10


def _centred(draw, place, text):
    # Pillow 9.1 cannot measure text in its own font; a character is about 6 pixels wide.
    draw.text((place[0] - 3 * len(text), place[1]), text, BLACK)
