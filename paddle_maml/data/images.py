"""Images by class: what every image data set of this library is, and how (image, label) pairs become one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Iterable, Sequence

import numpy as np
import paddle
from PIL import Image

from ..errors import UserError

CHANNELS = (1, 2, 3, 4)  # an axis that is longer is no axis of channels


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images by class.

    Args:
        name: "omniglot", "synthetic" or another; reports say which.
        classes: names, such as "Alphabet/characterNN".
        images: uint8 or floating point (classes, drawers, C, H, W), distorted copies counted as drawers; or a
            list of (drawers, C, H, W) where classes differ in size.
        listing_sha256: digest of the files that the set was made from, "" for sets of other origin than a
        folder.
    """

    name: str
    classes: tuple[str, ...]
    images: np.ndarray | list
    listing_sha256: str = ""

    @classmethod
    def from_labelled(
        cls,
        dataset: paddle.io.Dataset | Iterable,
        name: str = "labelled",
        classes: Iterable | None = None,
        invert: bool = False,
    ) -> ImageSet:
        """Any data set of (image, label) by class, such as `paddle.vision.datasets.MNIST`.

        Pixels stay as they are: those of uint8 (0 .. 255) are scaled to [-1, 1] in the episodes, and floating
        point is taken as the network's input. (MNIST with `backend="cv2"` gives floats from 0 to 255: leave
        it out.) The ink of MNIST is white on black, that of Omniglot and of the drawn characters black on
        white: `invert` makes one the other.

        Args:
            dataset: a `paddle.io.Dataset` or any other sequence or iterable of (image, label). An image is a
                Pillow image, an array or a tensor of shape (H, W), (H, W, C) or (C, H, W), with 1 to 4
                channels C; a label is a whole number, or an array or a tensor of one.
            name: the name of the set.
            classes: the labels to take; all by default.
            invert: take 255 - v for every pixel v of uint8.

        Returns:
            `ImageSet` with the classes sorted by label, each named str(label), and of each its images in the
            order of the data set.

        Raises:
            UserError: no images, or none of a class asked for; an item that is no pair, an image that is none
                or differs from the first one in shape or type; a label that is no whole number; `invert` of
                floating point.
        """
        wanted = None if classes is None else {_label(label, f"classes of {name}") for label in classes}
        by_label, first = {}, None
        for number, item in enumerate(_items(dataset)):
            where = f"item {number} of {name}"
            if not isinstance(item, (tuple, list)) or len(item) != 2:
                raise UserError(f"{where} is a {type(item).__name__}, but must be a pair (image, label).")
            label = _label(item[1], f"the label of {where}")
            if wanted is not None and label not in wanted:
                continue
            image = as_image(item[0], where)
            first = image if first is None else first
            if image.shape != first.shape or image.dtype != first.dtype:
                raise UserError(
                    f"{where} is an image of shape {image.shape} and type {image.dtype}, unlike the first "
                    f"with {first.shape} and {first.dtype}: give all images one size and type."
                )
            by_label.setdefault(label, []).append(image)
        missing = sorted((wanted or set()) - set(by_label))
        if missing:
            raise UserError(f"{name} has no images with the label {missing[0]}: leave it out of classes.")
        if first is None:
            raise UserError(f"{name} is empty, but must have (image, label) to make classes of.")
        if invert and first.dtype != np.uint8:
            raise UserError(f"invert is for images of uint8, but those of {name} are {first.dtype}.")
        labels = sorted(by_label)
        images = [np.stack(by_label[label]) for label in labels]
        if invert:
            images = [255 - of_class for of_class in images]
        if len({len(of_class) for of_class in images}) == 1:
            images = np.stack(images)
        return cls(name, tuple(map(str, labels)), images)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(C, H, W) of the first class's images."""
        return tuple(self.images[0].shape[1:])

    def subset(self, classes: Sequence[str]) -> ImageSet:
        """The same set with only these classes, in this order. Raises UserError if one is not there."""
        place = {name: i for i, name in enumerate(self.classes)}
        missing = [name for name in classes if name not in place]
        if missing:
            raise UserError(
                f"{self.name} lacks {len(missing)} of the {len(classes)} classes asked for, the first is "
                f"{missing[0]}."
            )
        chosen = [place[name] for name in classes]
        images = (
            self.images[chosen] if isinstance(self.images, np.ndarray) else [self.images[i] for i in chosen]
        )
        return ImageSet(self.name, tuple(classes), images, self.listing_sha256)

    @classmethod
    def joined(cls, sets: Iterable[ImageSet]) -> ImageSet:
        """The classes of several sets, which have none in common, as one set of the first one's name."""
        sets = list(sets)
        classes = tuple(name for one in sets for name in one.classes)
        images = [images for one in sets for images in one.images]
        return cls(sets[0].name, classes, images, sets[0].listing_sha256)


def alphabet_of(class_name: str) -> str:
    """The part of a class's name before "/"."""
    return class_name.split("/")[0]


def _items(dataset):
    """By number where there is a length: a data set need not raise the IndexError that ends a plain loop."""
    if hasattr(dataset, "__len__") and not isinstance(dataset, paddle.io.IterableDataset):
        return (dataset[number] for number in range(len(dataset)))
    return iter(dataset)


def _label(value, what):
    """A label as int."""
    array = np.asarray(value)
    number = array.item() if array.size == 1 else None
    if array.dtype.kind not in "iuf" or number is None or number != number or number % 1:
        shown = repr(value) if array.ndim == 0 else f"an array of {array.dtype} of shape {array.shape}"
        raise UserError(f"{what} is {shown}, but must be one whole number.")
    return int(number)


def as_image(value: Any, where: str) -> np.ndarray:
    """An image as an array (C, H, W), uint8 or float32.

    Args:
        value: a Pillow image, an array or a tensor, (H, W), (H, W, C) or (C, H, W).
        where: what it is, for the message.

    Raises:
        UserError: it is no image.
    """
    if isinstance(value, Image.Image) and value.mode in ("1", "P"):  # bits, and places in a palette
        value = value.convert("L" if value.mode == "1" else "RGB")
    image = np.asarray(value)
    if image.dtype != np.uint8 and image.dtype.kind != "f":
        raise UserError(
            f"{where} has an image of type {type(value).__name__} with {image.dtype}, but must be a Pillow "
            "image, or an array of uint8 from 0 to 255 or of floating point."
        )
    if image.ndim == 2:
        image = image[None]
    elif image.ndim != 3 or (image.shape[0] in CHANNELS) == (image.shape[2] in CHANNELS):
        raise UserError(
            f"{where} has an image of shape {image.shape}, but must be (H, W), (H, W, C) or (C, H, W), with "
            "1 to 4 channels on one side alone."
        )
    elif image.shape[2] in CHANNELS:
        image = image.transpose(2, 0, 1)
    if not image.size:
        raise UserError(f"{where} has an image of shape {image.shape}, which has no pixels.")
    return image if image.dtype == np.uint8 else image.astype(np.float32)
