"""Decoded images in a file, which is mapped and not read: processes share its memory.

The file is `HEAD` bytes of JSON, padded with spaces, and then the pixels. A file of another length, of
another key, or whose CRC-32 is not that of its pixels is as good as none.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import warnings
import zlib
from pathlib import Path

import numpy as np

from ..files import write_together

HEAD = 4096


def read_cache(file: Path, key: str, shape: tuple[int, ...]) -> tuple[np.ndarray, dict] | None:
    """What `write_cache` wrote under a key: (pixels, facts), the pixels uint8 of a shape that cannot be
    written to; None where there is no such file, or another."""
    try:
        if os.stat(file).st_size != HEAD + math.prod(shape):
            return None
        with open(file, "rb") as opened:
            head = json.loads(opened.read(HEAD))
        pixels = np.memmap(file, np.uint8, "r", HEAD, shape).view(np.ndarray)
        sound = head["key"] == key and head["crc32"] == zlib.crc32(pixels)
        return (pixels, head["facts"]) if sound and isinstance(head["facts"], dict) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def space_for(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """(buffer, pixels): memory for a whole file, and the part of it that holds the pixels, uint8 of a
    shape."""
    buffer = np.empty(HEAD + math.prod(shape), np.uint8)
    return buffer, buffer[HEAD:].reshape(shape)


def write_cache(folders: list[Path], name: str, key: str, buffer: np.ndarray, facts: dict) -> None:
    """Write a buffer of `space_for`, whose pixels are there, into the first folder that can be written to.

    Args:
        folders: in order of preference; a warning says that there is none.
        name: of the file.
        key: digest of what the pixels are made from.
        facts: plain values that `read_cache` gives back, short enough for the head.
    """
    head = json.dumps({"key": key, "crc32": zlib.crc32(buffer[HEAD:]), "facts": facts}).encode()
    buffer[:HEAD] = np.frombuffer(head.ljust(HEAD), np.uint8)
    for folder in folders:
        with contextlib.suppress(OSError):
            write_together(folder, {name: buffer.data})
            return
    warnings.warn(
        f"No folder for the decoded images can be written to ({', '.join(map(str, folders))}): they are "
        "decoded anew each time.",
        stacklevel=3,
    )
