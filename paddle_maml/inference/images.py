"""The images that a user gives, in whatever form, and what becomes of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Hashable, Iterator, NamedTuple

import numpy as np
import paddle
from PIL import Image

from ..data.drawings import INKS, as_drawing, has_light_ink
from ..data.image_files import SUFFIXES, as_seen, open_image, shown, to_array
from ..data.images import as_image
from ..data.preprocessing import to_network_input
from ..engine.assembly import input_shape
from ..engine.settings import Settings
from ..errors import UserError


class Given(NamedTuple):
    """An image of the user's."""

    name: str  # its path, or its number among those given
    label: Hashable | None  # None where nothing says it
    image: Image.Image | np.ndarray  # of mode "L" or "RGB"; or floating point (C, H, W)


def network_inputs(
    source: Any, labels: Any, settings: Settings, ink: str, what: str
) -> tuple[list[Given], np.ndarray, int]:
    """The images that `source` stands for as a network was trained on them, see data/drawings.py; images of a
    folder that it was trained on are resized as those were, and not inverted unless `ink` says so.

    Args:
        source, labels, what: as of `images_of`.
        settings: of the network.
        ink: one of `INKS`.

    Returns:
        (given, x, inverted): the images' names and labels; float32 (N, C, H, W); how many were inverted.

    Raises:
        UserError: as `images_of`; an unknown `ink`, an image of one colour, or floating point that is no
            network input.
    """
    if ink not in INKS:
        raise UserError(f"ink is {ink!r}, but must be one of {', '.join(INKS)}.")
    given, arrays, inverted = [], [], 0
    for one in images_of(source, labels, what):
        array, light = _finished(one, settings, ink)
        given.append(one._replace(image=None))
        arrays.append(array)
        inverted += light
    return given, np.stack(arrays), inverted


def _finished(one, settings, ink):
    """The network's input, and whether it was inverted."""
    channels, size, _ = input_shape(settings)
    if settings.dataset not in ("omniglot", "synthetic") and ink == "auto":
        ink = "dark"
    if isinstance(one.image, np.ndarray):
        _check_floating(one, (channels, size, size))
        light = has_light_ink(one.image.mean(axis=0), ink, white=2.0, name=one.name)
        return (-one.image if light else one.image), light
    if settings.dataset in ("omniglot", "synthetic"):
        array, light = as_drawing(one.image, size, settings.preprocessing, ink, one.name)
    else:
        array, light = to_array(one.image, channels, size), ink == "light"
        array = 255 - array if light else array
    return to_network_input(array), light


def _check_floating(one, shape):
    image = one.image
    low, high = float(image.min()), float(image.max())
    if image.shape != shape or not -1 <= low < 0 or not high <= 1:  # NaN is neither
        raise UserError(
            f"{one.name} is floating point of shape {image.shape} from {low:.3g} to {high:.3g}, but must be "
            f"the network's input, {shape} from -1 (black) to 1 (white): give uint8 from 0 to 255 instead."
        )


# What is given


def images_of(source: Any, labels: Any = None, what: str = "the queries") -> Iterator[Given]:
    """The images that `source` stands for, in order; those of folders sorted by name.

    Args:
        source: a folder of class folders, whose names are the labels; a folder of images; an image: a path, a
            Pillow image, an array or a tensor of two axes (H, W); several: any sequence of images, of which
            arrays may also be (H, W, C) or (C, H, W), or one array (N, H, W), (N, H, W, C) or (N, C, H, W).
        labels: a label for each image, unless folders name them.
        what: what the images are called in messages.

    Raises:
        UserError: there are none, one cannot be read, or labels are missing or too many.
    """
    if isinstance(source, (str, os.PathLike)) and os.path.isdir(source):
        if labels is not None:
            raise UserError(f"{what} is a folder, which names the labels: leave labels out.")
        yield from _of_folder(Path(source))
        return
    images = _several(source, what)
    if labels is not None:
        labels = labels.tolist() if isinstance(labels, (np.ndarray, paddle.Tensor)) else list(labels)
        images = list(images)
        if len(images) != len(labels):
            raise UserError(f"{what} has {len(images)} images and {len(labels)} labels: give one for each.")
    number = -1
    for number, item in enumerate(images):
        label = None if labels is None else labels[number]
        if not _is_label(label):
            raise UserError(f"A label is {label!r}, which is no text of one line and no number.")
        yield _one(item, label, f"image {number} of {what}")
    if number < 0:
        raise UserError(f"There are no images in {what}: give one at least.")


def _is_label(label):
    if isinstance(label, str):
        return label.splitlines() == [label]
    return label is None or isinstance(label, Hashable) and label == label  # NaN is not


def _several(source, what):
    """The items of a source that is no folder."""
    if isinstance(source, paddle.Tensor):
        source = source.numpy()
    if isinstance(source, np.ndarray) and source.dtype.kind in "uif":
        if source.ndim not in (2, 3, 4):
            raise UserError(
                f"{what} is an array of shape {source.shape}, but must be (H, W), (N, H, W), (N, H, W, C) or "
                "(N, C, H, W)."
            )
        return source[None] if source.ndim == 2 else source
    if isinstance(source, (str, os.PathLike)) and not os.path.exists(source):
        raise UserError(f"There is no file or folder {shown(source)}.")
    if isinstance(source, (str, os.PathLike, Image.Image)):
        return [source]
    try:
        return iter(source)
    except TypeError:
        kind = type(source).__name__
        raise UserError(f"{what} is of type {kind}, but must be images or a folder of them.") from None


def _one(item, label, name):
    if isinstance(item, (str, os.PathLike)):
        return Given(shown(item), label, open_image(item))
    if not isinstance(item, Image.Image):
        array = as_image(item, name)
        if array.dtype != np.uint8:
            return Given(name, label, array)
        values = array[0] if len(array) == 1 else np.ascontiguousarray(array.transpose(1, 2, 0))
        item = Image.fromarray(values)  # grey, with opacity, RGB or RGBA, by its channels
    return Given(name, label, as_seen(item))


def _of_folder(folder):
    """The images of a folder, or of the folders in it, which are their labels."""
    entries = _listed(folder)
    folders = [entry for entry in entries if entry.is_dir()]
    files = [entry for entry in entries if _is_image_name(entry)]
    if folders and files:
        raise UserError(
            f"{shown(folder)} holds images ({shown(files[0].name)}) beside folders "
            f"({shown(folders[0].name)}): keep it to one or the other."
        )
    if not folders and not files:
        raise UserError(
            f"{shown(folder)} is empty: it must hold images ({', '.join(SUFFIXES)}), or a folder of them for "
            "each class."
        )
    for path in files:
        yield Given(shown(path), None, open_image(path))
    for inner in folders:
        paths = [path for path in _listed(inner) if _is_image_name(path)]
        if not paths:
            raise UserError(f"{shown(inner)} is empty: it must hold images ({', '.join(SUFFIXES)}).")
        for path in paths:
            yield Given(shown(path), shown(inner.name), open_image(path))


def _listed(folder):
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise UserError(f"The folder {shown(folder)} cannot be read ({error.strerror}).") from None


def _is_image_name(path):
    """UserError for an image of another kind, which would be left out in silence."""
    if path.is_dir():
        return False
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES and suffix in Image.registered_extensions():
        raise UserError(f"{shown(path)} is none of {', '.join(SUFFIXES)}: convert it, or move it away.")
    return suffix in SUFFIXES
