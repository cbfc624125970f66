"""A user's own images: a folder of class folders as an image data set (folder_listing.py says how they lie,
image_files.py how a file is read)."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import os
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Sequence

import numpy as np

from ..errors import UserError
from .draws import check_seed
from .folder_listing import list_folder, refuse_files, skipped_text
from .image_cache import read_cache, space_for, write_cache
from .image_files import UnusableImage, open_image, shown, to_array
from .images import ImageSet
from .omniglot import own_folders
from .splits import PARTS

CACHE_VERSION = 1
THREADS = 4  # Pillow lets go of Python's lock while it decodes; each holds a decoded picture
PROGRESS_SECONDS = 5


@dataclasses.dataclass(frozen=True)
class FolderImages:
    """The images of a folder.

    Args:
        parts: dict from "train", "val" and "test" to `ImageSet`.
        rule: how the classes are divided: "folders", or "random" and the seed.
        summary: lines on what there is, what becomes of it, and what was skipped and why.
    """

    parts: dict[str, ImageSet]
    rule: str
    summary: str


def load_folder(
    path: str | Path,
    image_size: int = 84,
    channels: int = 3,
    split_seed: int = 0,
    name: str = "folder",
    cache_dir: str | Path | None = None,
) -> FolderImages:
    """Loads a folder of images by class.

    Args:
        path: the folder.
        image_size: height and width to resize to, in pixels.
        channels: 1, grey, or 3, colour; grey images become colour ones and the reverse.
        split_seed: decides which classes are for what, unless there are train/, val/ and test/; 0 .. 2**64 -
            1.
        name: the name of the data set.
        cache_dir: where the decoded images are kept; by default as those of Omniglot.

    Returns:
        `FolderImages`, of uint8 (images of the class, channels, image_size, image_size), images sorted by
        name.

    Raises:
        UserError: as `list_folder`; images that cannot be used, which are named.
    """
    check_seed(split_seed)
    if image_size < 1:
        raise UserError(f"image_size is {image_size}, but must be at least 1.")
    listing = list_folder(os.fspath(path))
    pixels, facts = _cached_or_decoded(listing, image_size, channels, cache_dir)
    sizes = [len(files) for _, _, files in listing.classes]
    ends = np.cumsum(sizes)
    images = [pixels[end - size : end] for size, end in zip(sizes, ends)]
    classes = tuple(name for _, name, _ in listing.classes)
    whole = ImageSet(name, classes, images, listing.digest())
    divided, rule = listing.divided(split_seed)
    parts = {part: whole.subset(own) for part, own in divided.items()}
    return FolderImages(parts, rule, _summary(listing, parts, rule, sizes, facts, image_size, channels))


# Reading


def _cached_or_decoded(listing, image_size, channels, cache_dir):
    """(pixels, facts): uint8 (images, channels, image_size, image_size), in the order of the listing, and
    what is said about the files."""
    shape = (sum(len(files) for _, _, files in listing.classes), channels, image_size, image_size)
    key = hashlib.sha256(
        f"{CACHE_VERSION} {image_size} {channels} {listing.digest(times=True)}".encode()
    ).hexdigest()
    place = hashlib.sha256(os.fsencode(listing.root)).hexdigest()[:8]
    title = re.sub(r"[^A-Za-z0-9_-]", "_", os.path.basename(listing.root))[:40]
    name = f"folder-{title}-{place}-{image_size}-{channels}.images"
    folders = [Path(cache_dir)] if cache_dir is not None else [folder / "cache" for folder in own_folders()]
    for folder in folders:
        found = read_cache(folder / name, key, shape)
        if found and _Facts.sound(found[1]):
            return found[0], _Facts(**found[1])
    buffer, pixels = space_for(shape)
    facts = _decode(listing, pixels, image_size, channels)
    write_cache(folders, name, key, buffer, dataclasses.asdict(facts))
    return pixels, facts


@dataclasses.dataclass
class _Facts:
    """About the files: widths and heights of the smallest and the largest, and how many are in colour, and
    have a side below the image size."""

    smallest: Sequence[int]
    largest: Sequence[int]
    coloured: int
    enlarged: int

    @staticmethod
    def sound(values):
        names = [field.name for field in dataclasses.fields(_Facts)]
        return (
            sorted(values) == sorted(names)
            and all(type(values[name]) is int for name in names[2:])
            and all(
                isinstance(values[name], list) and [type(side) for side in values[name]] == [int, int]
                for name in names[:2]
            )
        )


def _decode(listing, pixels, image_size, channels):
    """Reads every image into the pixels, and tells of long work on the error output; returns `_Facts`."""
    files = [file for _, _, files in listing.classes for file in files]
    unusable, sizes, coloured = {}, [], 0

    def read(number):
        try:
            image = open_image(os.path.join(listing.root, files[number]), within=listing.root)
        except UnusableImage as error:
            return error
        pixels[number] = to_array(image, channels, image_size)
        return image.size, image.mode == "RGB"

    told = time.monotonic()
    with ThreadPoolExecutor(THREADS) as pool:
        futures = collections.deque(pool.submit(read, number) for number in range(len(files)))
        try:
            for number, file in enumerate(files):
                result = futures.popleft().result()
                if isinstance(result, UnusableImage):
                    unusable[file] = result.why
                else:
                    sizes.append(result[0])
                    coloured += result[1]
                if time.monotonic() - told > PROGRESS_SECONDS:
                    told = time.monotonic()
                    print(f"{shown(listing.root)}: {number + 1} of {len(files)} images read", file=sys.stderr)
        finally:
            for future in futures:
                future.cancel()
    if unusable:
        refuse_files(listing.root, unusable, len(files))
    sizes.sort(key=lambda size: (size[0] * size[1], size))
    return _Facts(list(sizes[0]), list(sizes[-1]), coloured, sum(min(size) < image_size for size in sizes))


# Telling


def _summary(listing, parts, rule, sizes, facts, image_size, channels):
    total = sum(sizes)
    few, most = min(sizes), max(sizes)
    each = f"{few}" if few == most else f"{few} to {most}"
    small, large = ("x".join(map(str, size)) for size in (facts.smallest, facts.largest))
    range_of = f"of {small}" if small == large else f"from {small} to {large}"
    colours = {0: "all grey", total: "all in colour"}.get(facts.coloured, f"{facts.coloured} in colour")
    lines = [
        f"{shown(listing.root)}: {len(sizes)} classes of {each} images, {total} in all, {range_of} pixels, "
        f"{colours}."
    ]
    become = f"Resized to {image_size}x{image_size} pixels, {'grey' if channels == 1 else 'colour'}"
    if facts.enlarged:
        become += f"; {facts.enlarged} are smaller and were enlarged"
    if channels == 1 and facts.coloured:
        become += "; in_channels 3 keeps the colours"
    lines.append(become + ".")
    counts = ", ".join(f"{len(parts[part].classes)} for {part}" for part in PARTS)
    how = "by train/, val/ and test/" if rule == "folders" else f"at {rule.replace(' ', ', with seed ')}"
    lines.append(f"Classes divided {how}: {counts}.")
    if listing.skipped:
        lines.append(f"Skipped: {skipped_text(listing.skipped)}.")
    return "\n".join(lines)
