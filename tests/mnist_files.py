"""Small files in MNIST's format (idx, gzip), as the data sets of paddle.vision read them."""

import gzip
import struct

import numpy as np


def write_idx(path, array):
    """Write a uint8 array: two zero bytes, 8 for unsigned bytes, the number of axes, each length, the
    values."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + np.ascontiguousarray(array, np.uint8).tobytes()))
    return str(path)


def draw_digits(per_class=20, classes=10, seed=0):
    """Digits that are none: of each class a pattern of its own, white on black, moved and dimmed a little.

    Returns:
        uint8 images (classes * per_class, 28, 28) and their labels, shuffled. Paddle reads files of hundreds.
    """
    random = np.random.RandomState(seed)
    labels = random.permutation(np.repeat(np.arange(classes), per_class))
    patterns = np.kron(random.random_sample((classes, 5, 5)) > 0.5, np.ones((4, 4)))
    images = np.zeros((len(labels), 28, 28), np.uint8)
    for image, label in zip(images, labels):
        row, column = random.randint(2, 7, 2)
        image[row : row + 20, column : column + 20] = patterns[label] * random.randint(150, 256)
    return images, labels


def write_digits(folder, **how):
    """Write `draw_digits` into a folder. Returns the paths of the images and the labels, and both arrays."""
    images, labels = draw_digits(**how)
    paths = (
        write_idx(folder / "train-images-idx3-ubyte.gz", images),
        write_idx(folder / "train-labels-idx1-ubyte.gz", labels),
    )
    return (*paths, images, labels)
