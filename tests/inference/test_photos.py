"""Drawings as a user has them: photographed, in pencil, with another pen."""

import io

import numpy as np
import pytest
from drawn import drawings
from PIL import Image, ImageFilter

import paddle_maml
from paddle_maml.data import drawings as rule


def photo(drawing, generator):
    """Dark grey ink on paper that the light falls on from one side, noise, JPEG, five times as large."""
    image = Image.fromarray(np.kron(drawing, np.ones((5, 5), np.uint8))).filter(ImageFilter.GaussianBlur(2))
    values = np.asarray(image) / 255
    paper = 170 + 60 * np.linspace(0, 1, values.shape[1]) * generator.uniform(0.3, 1)
    values = 60 + (paper - 60) * values + generator.normal(0, 6, values.shape)
    file = io.BytesIO()
    Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=80)
    return Image.open(file)


def pencil(drawing, generator):
    return Image.fromarray((175 + drawing.astype(int) * 60 // 255).astype(np.uint8))


def thick(drawing, generator):
    large = Image.fromarray(np.kron(drawing, np.ones((4, 4), np.uint8)))
    return large.filter(ImageFilter.MinFilter(13))


def white_on_black(drawing, generator):
    return Image.fromarray(255 - np.asarray(photo(drawing, generator)))


def accuracy(change):
    """Over the characters of an alphabet, five at a time: one support image, three queries of each."""
    generator, drawn = np.random.default_rng(0), drawings(40)
    classifier, right = paddle_maml.load("5way-1shot"), []
    for start in range(0, 40, 5):
        own = drawn[start : start + 5]
        support = [change(of_class[0], generator) for of_class in own]
        queries = [change(image, generator) for of_class in own for image in of_class[4:7]]
        labels = classifier.adapt(support, range(5)).predict(queries).labels
        right += [label == number // 3 for number, label in enumerate(labels)]
    return np.mean(right)


@pytest.mark.slow
def test_photos_are_told_apart_nearly_as_well(monkeypatch):
    plain = accuracy(lambda drawing, generator: Image.fromarray(drawing))
    found = {change.__name__: accuracy(change) for change in (photo, pencil, thick, white_on_black)}
    monkeypatch.setattr(rule, "_levelled", lambda grey: grey)
    without = accuracy(photo)
    print(f"plain {plain:.1%}", {name: f"{value:.1%}" for name, value in found.items()}, f"{without:.1%}")
    assert plain > 0.9 and min(found.values()) > plain - 0.08
    assert without < min(found.values()) - 0.1  # what making paper white and ink black is for
