"""What lies in a folder of images: which classes, which files, and what is left out.

    PATH/class/picture.jpg                 a class for each folder, or
    PATH/alphabet/character/picture.jpg    for each folder in a folder: the class "alphabet/character"
    PATH/train/..., val/..., test/...      the same in each, where the classes are divided already

Nothing is opened here. Names are taken in the order of their code points, and those of classes in Unicode's
composed form (NFC), so that no file system decides on the order.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import stat
import unicodedata
from typing import NoReturn

from ..errors import UserError
from .image_files import SUFFIXES, is_inside, shown
from .splits import PARTS, split_by_seed

_TYPES = ", ".join(SUFFIXES[:-1]) + " or " + SUFFIXES[-1]
HIDDEN = "hidden"
OTHER_TYPES = f"not named {_TYPES}"
BESIDE = "not in a class folder"
DEEPER = "folders below those of classes"
EMPTY = "folders without images"

_SHOWN = 3  # of the files that cannot be used


@dataclasses.dataclass
class Listing:
    """The classes in a folder.

    Args:
        root: the folder, all links resolved.
        parts: dict from part, "train" and so on, or "" where the classes are not divided, to a dict from
            class to its files, sorted: paths from root with "/".
        status: dict from file to (bytes, time of the last change in ns).
        skipped: dict from reason to paths.
    """

    root: str
    parts: dict
    status: dict
    skipped: dict

    @property
    def classes(self) -> list[tuple[str, str, list[str]]]:
        """(part, class, files) of each class; parts in the order of `PARTS`, classes sorted."""
        return [(part, name, files) for part, own in self.parts.items() for name, files in own.items()]

    def divided(self, split_seed: int) -> tuple[dict[str, list[str]], str]:
        """The names of the classes of "train", "val" and "test", sorted, and the rule: "folders", or "random"
        and the seed, which counts where there are no folders of these names."""
        if "" in self.parts:
            return split_by_seed(list(self.parts[""]), split_seed), f"random {split_seed}"
        return {part: list(classes) for part, classes in self.parts.items()}, "folders"

    def digest(self, times: bool = False) -> str:
        """SHA-256 over parts, classes, names and sizes of the files; with the times of their last change on
        request, which a copy on another machine need not have."""
        entries = [
            (part, name, file, self.status[file][: 2 if times else 1])
            for part, name, files in self.classes
            for file in files
        ]
        return hashlib.sha256(repr(entries).encode("utf-8", "surrogateescape")).hexdigest()


def list_folder(path: str) -> Listing:
    """The `Listing` of a folder.

    Raises:
        UserError: there is no such folder, or no class in it; a class in two parts; train/ and test/ without
            val/; a folder that holds both images and folders of images; links that leave the folder, or names
            of images that no regular files have.
    """
    root = os.path.realpath(path)
    if not os.path.isdir(root):
        raise UserError(f"There is no folder {shown(path)}: name the one that holds the class folders.")
    scan = _Scan(root)
    folders, files = scan.look("")
    if {"train", "test"} <= set(folders):
        if "val" not in folders:
            raise UserError(
                f"{shown(root)} has train/ and test/ but no val/: make one, of classes for validation, or "
                "put all class folders side by side, which divides them at random."
            )
        scan.skip(BESIDE, [*files, *(folder for folder in folders if folder not in PARTS)])
        parts = {part: scan.classes(part, *scan.look(part)) for part in PARTS}
    else:
        parts = {"": scan.classes("", folders, files)}
    listing = Listing(root, parts, scan.status, dict(sorted(scan.skipped.items())))
    if scan.unusable:
        refuse_files(root, scan.unusable, len(scan.status) + len(scan.unusable))
    if not listing.classes:
        found = f" ({skipped_text(listing.skipped)})" if listing.skipped else ""
        raise UserError(f"{shown(root)} has no class folders with images{found}: make one for each class.")
    _refuse_shared(root, parts)
    return listing


def skipped_text(skipped: dict[str, list[str]]) -> str:
    """What was skipped and why, such as "hidden: .git and 2 more"."""
    return "; ".join(
        f"{why}: {shown(paths[0])}" + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")
        for why, paths in skipped.items()
    )


def refuse_files(root: str, unusable: dict[str, str], total: int) -> NoReturn:
    """UserError that names files which cannot be used, given with the end of a sentence on each."""
    first = "; ".join(f"{shown(file)} {why}" for file, why in sorted(unusable.items())[:_SHOWN])
    more = f"; and {len(unusable) - _SHOWN} more" if len(unusable) > _SHOWN else ""
    raise UserError(
        f"{len(unusable)} of the {total} images in {shown(root)} cannot be used, so replace them or take "
        f"them away: {first}{more}."
    )


class _Scan:
    """One walk through a folder."""

    def __init__(self, root):
        self.root, self.status, self.skipped, self.unusable = root, {}, {}, {}

    def skip(self, why, paths):
        if paths:
            self.skipped.setdefault(why, []).extend(paths)

    def look(self, inside):
        """(folders, image files) in a folder, as paths from the root; the rest is noted."""
        folders, files = [], []
        with os.scandir(os.path.join(self.root, inside)) as entries:
            names = sorted((entry.name for entry in entries), key=lambda name: (_composed(name), name))
        for name in names:
            place = f"{inside}/{name}" if inside else name
            path = os.path.join(self.root, place)
            folder, link = os.path.isdir(path), os.path.islink(path)
            if name.startswith(".") or name == "__MACOSX":
                self.skip(HIDDEN, [place])
            elif not folder and not name.lower().endswith(SUFFIXES):
                self.skip(OTHER_TYPES, [place])
            elif link and not is_inside(path, self.root):
                self.unusable[place] = "is a link that leaves the folder"
            elif folder:
                folders.append(place)
            elif self._regular(place, path):
                files.append(place)
        return folders, files

    def _regular(self, place, path):
        try:
            status = os.stat(path)
        except OSError as error:
            self.unusable[place] = f"cannot be read ({error.strerror})"
            return False
        if not stat.S_ISREG(status.st_mode):
            self.unusable[place] = "is no regular file"
            return False
        self.status[place] = status.st_size, status.st_mtime_ns
        return True

    def classes(self, inside, folders, files):
        """dict from class to files, of the class folders in a folder."""
        self.skip(BESIDE, files)
        found = {}
        for folder in folders:
            inner, files = self.look(folder)
            within = {place: self.look(place) for place in inner}
            with_images = [place for place in inner if within[place][1]]
            if files and with_images:
                raise UserError(
                    f"{shown(folder)} holds both images and a folder of images, {shown(with_images[0])}: let "
                    "the folder of a class hold its images alone."
                )
            found.update((place, within[place][1]) for place in with_images)
            if files:
                found[folder] = files
            self.skip(DEEPER, [deeper for deepest, _ in within.values() for deeper in deepest])
            empty = [place for place in inner if not any(within[place])]
            self.skip(EMPTY, empty + ([folder] if not files and not inner else []))
        named = {}
        for folder in sorted(found):
            name = _composed(folder[len(inside) + 1 if inside else 0 :])
            if shown(name) != name or name in named:
                raise UserError(
                    f"{shown(folder)} has a name that is not UTF-8, or that another class has too: rename it."
                )
            named[name] = found[folder]
        return dict(sorted(named.items()))


def _composed(name):
    return unicodedata.normalize("NFC", name)


def _refuse_shared(root, parts):
    part_of = {}
    for part, classes in parts.items():
        for name in classes:
            if name in part_of:
                raise UserError(
                    f"{name} is a class in {part_of[name]}/ and in {part}/ of {shown(root)}, but a test must "
                    "be on classes that training has not seen: divide the classes, and not their images, or "
                    "put all class folders side by side."
                )
            part_of[name] = part
