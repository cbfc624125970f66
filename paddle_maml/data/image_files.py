"""Image files as they come: what is opened, how much of it is decoded, and what becomes of the pixels.

- A path is resolved, links included, and must be a regular file then; a FIFO or a device is never opened.
- PNG, JPEG, BMP and WebP are told by their content. The size that the header gives is looked at before a
  pixel is decoded: at most `PIL.Image.MAX_IMAGE_PIXELS` pixels, and `MOST_SIDE` in a row or a column.
- The picture is what a viewer shows: turned as its EXIF entry says, white where it is transparent, 8 of 16
  bits a channel, the first frame of several. Colour profiles are ignored. Nothing is inverted.
- It is resized to a square with Pillow's Lanczos filter, which weighs all pixels under an output pixel. The
  whole picture is kept, and not its proportions: so the code of Finn et al. 2017 makes miniImageNet.
"""

from __future__ import annotations

import io
import os
import stat
import threading
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import UserError

FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
MOST_BYTES = 1 << 26
MOST_SIDE = 65535  # the memory of a filter grows with the side that it shrinks

_OPENING = threading.Lock()  # the filter of warnings belongs to all threads


class UnusableImage(UserError):
    """A file that is no image to use; `why` is the end of a sentence that begins with its path."""

    def __init__(self, path: str | Path, why: str):
        super().__init__(f"{shown(path)} {why}: replace it or take it away.")
        self.why = why


def read_image(
    path: str | Path, channels: int, image_size: int | None = None, within: str | Path | None = None
) -> np.ndarray:
    """Reads an image file, see above.

    Args:
        path: the file.
        channels: 1, grey, or 3, red, green and blue.
        image_size: height and width to resize to, in pixels; as in the file by default.
        within: folder that the file must lie in when all links are resolved; anywhere by default.

    Returns:
        uint8 (channels, H, W).

    Raises:
        UnusableImage: there is no such file, it is not regular, not in the folder, too large, no image of the
            four formats, or damaged.
    """
    return to_array(open_image(path, within), channels, image_size)


def open_image(path: str | Path, within: str | Path | None = None) -> Image.Image:
    """The decoded picture in an image file, of mode "L" or "RGB"; arguments and errors as for
    `read_image`."""
    return decode_image(_read_regular(path, within), path)


def decode_image(data: bytes, path: str | Path) -> Image.Image:
    """The same of the bytes of a file; `path` is what messages call it."""
    try:
        with _opened(data) as image:
            width, height = image.size
            if width < 1 or height < 1:
                raise UnusableImage(path, f"has {width}x{height} pixels")
            if width * height > (Image.MAX_IMAGE_PIXELS or width * height) or max(image.size) > MOST_SIDE:
                raise UnusableImage(path, f"has {width}x{height} pixels, which are too many")
            if image.format == "PNG":
                image.verify()  # decoding skips some checksums; afterwards the image is used up
        with _opened(data) as image:
            image.load()
            return as_seen(image)
    except (UnusableImage, MemoryError):
        raise
    except UnidentifiedImageError:
        raise UnusableImage(path, "is no PNG, JPEG, BMP or WebP image") from None
    except Image.DecompressionBombError:
        raise UnusableImage(path, "has too many pixels") from None
    except Exception as error:  # Pillow's readers raise what they will on damaged files
        said = str(error).splitlines()[:1] or [type(error).__name__]
        raise UnusableImage(path, f"is damaged ({said[0]})") from None


def to_array(image: Image.Image, channels: int, image_size: int | None = None) -> np.ndarray:
    """A Pillow image of any mode as uint8 (channels, H, W), 1 channel or 3; resized to a square as above
    where `image_size` is given."""
    if channels not in (1, 3):
        raise UserError(f"channels is {channels}, but must be 1 or 3.")
    image = as_seen(image).convert("L" if channels == 1 else "RGB")
    if image_size is not None:
        image = image.resize((image_size, image_size), Image.LANCZOS)
    array = np.array(image)
    return array[None] if channels == 1 else np.ascontiguousarray(array.transpose(2, 0, 1))


def as_seen(image: Image.Image) -> Image.Image:
    """What a viewer shows of a Pillow image of any mode, see above: of mode "L" or, in colour, "RGB"."""
    if image.mode in ("L", "RGB") and not image.info:
        return image
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would cut off at 255
        high = np.right_shift(np.asarray(image), 8)
        return Image.fromarray(np.clip(high, 0, 255).astype(np.uint8))
    mode = "L" if image.mode in ("1", "L", "LA", "La", "F") else "RGB"
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        paper = Image.new("RGBA", image.size, "white")
        paper.alpha_composite(image.convert("RGBA"))
        image = paper
    image = image.convert(mode)
    image.info = {}  # done with
    return image


def shown(path: str | Path) -> str:
    """A path for a message: what no encoding has is spelled out."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def is_inside(path: str | Path, folder: str | Path) -> bool:
    """Whether a path is in a folder when all links are resolved."""
    return os.path.realpath(path).startswith(os.path.join(os.path.realpath(folder), ""))


def _opened(data):
    """A Pillow image whose header alone was read. Of its size this module judges, and not Pillow's
    warning."""
    with _OPENING, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(io.BytesIO(data), formats=FORMATS)


def _read_regular(path, within):
    """The bytes of a regular file. What it is is asked before it is opened, and again afterwards: another may
    have taken its place."""
    if within is not None and not is_inside(path, within):
        raise UnusableImage(path, f"is a link that leaves {shown(within)}")
    flags = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_NOFOLLOW", "O_BINARY"))
    try:
        real = os.path.realpath(path)
        _require_regular(path, os.stat(real))
        with open(os.open(real, flags), "rb") as file:
            _require_regular(path, os.fstat(file.fileno()))
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise UnusableImage(path, f"cannot be read ({error.strerror or error})") from None
    if len(data) > MOST_BYTES:
        raise UnusableImage(path, f"has more than {MOST_BYTES} bytes")
    return data


def _require_regular(path, status):
    if not stat.S_ISREG(status.st_mode):
        raise UnusableImage(path, "is a folder" if stat.S_ISDIR(status.st_mode) else "is no regular file")
    if status.st_size > MOST_BYTES:
        raise UnusableImage(path, f"has {status.st_size} bytes, more than {MOST_BYTES}")
