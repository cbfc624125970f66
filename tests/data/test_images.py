"""Images by class: parts of a set."""

import numpy as np
import pytest

from paddle_maml.data.images import ImageSet
from paddle_maml.errors import UserError


def images_of(classes):
    """1x1 images that tell their class, from 1 on."""
    return np.repeat(np.arange(1, classes + 1, dtype=np.uint8), 20).reshape(classes, 20, 1, 1, 1)


def test_subset():
    images = ImageSet("synthetic", ("a/1", "a/2", "b/1"), images_of(3))
    subset = images.subset(["b/1", "a/1"])
    assert subset.name == "synthetic" and subset.classes == ("b/1", "a/1")
    assert subset.images[:, 0, 0, 0, 0].tolist() == [3, 1]
    assert ImageSet("x", images.classes, list(images.images)).subset(["a/2"]).images[0][0, 0, 0, 0] == 2
    with pytest.raises(UserError, match="1 of the 2.*c/1"):
        images.subset(["a/1", "c/1"])
