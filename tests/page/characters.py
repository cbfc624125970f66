"""Characters as strokes, as a mouse draws them, and as sketches."""

import math

import numpy as np
from PIL import Image, ImageDraw

from paddle_maml.page.answers import LINE, SKETCH


def _arc(x, y, radius, start, end):
    """Points of an arc, by degrees clockwise from the right."""
    angles = np.radians(np.linspace(start, end, 24))
    return [(x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in angles]


# Strokes of points (x, y) in a square of side 1, y downwards.
CHARACTERS = {
    "cross": [[(0.2, 0.2), (0.8, 0.8)], [(0.8, 0.2), (0.2, 0.8)]],
    "circle": [_arc(0.5, 0.5, 0.32, 0, 360)],
    "bar": [[(0.5, 0.12), (0.5, 0.88)]],
    "stairs": [[(0.15, 0.2), (0.15, 0.5), (0.5, 0.5), (0.5, 0.8), (0.85, 0.8)]],
    "hook": [[(0.3, 0.15), (0.3, 0.6), *_arc(0.5, 0.6, 0.2, 180, 0)], [(0.15, 0.3), (0.6, 0.3)]],
}


def changed(strokes, shift=(0.0, 0.0), scale=1.0, turn=0.0):
    """The same, moved, scaled and turned (by degrees) about the middle: another hand's drawing."""
    sine, cosine = math.sin(math.radians(turn)) * scale, math.cos(math.radians(turn)) * scale
    return [
        [
            (
                0.5 + cosine * (x - 0.5) - sine * (y - 0.5) + shift[0],
                0.5 + sine * (x - 0.5) + cosine * (y - 0.5) + shift[1],
            )
            for x, y in stroke
        ]
        for stroke in strokes
    ]


def sketch(strokes, line=LINE):
    """uint8 (SKETCH, SKETCH), black ink on white, with lines of so many pixels."""
    image = Image.new("L", (SKETCH, SKETCH), 255)
    for stroke in strokes:
        points = [(x * SKETCH, y * SKETCH) for x, y in stroke]
        ImageDraw.Draw(image).line(points, fill=0, width=line, joint="curve")
    return np.asarray(image)
