"""Omniglot (Lake, Salakhutdinov, Tenenbaum 2015): find or download it, check it, decode it, keep the result
in a cache."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import io
import os
import re
import tempfile
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..errors import UserError
from ..files import read_whole, write_whole
from .distortion import with_distorted_copies
from .download import MAX_BYTES, fetch
from .image_cache import read_cache, space_for, write_cache
from .images import ImageSet
from .preprocessing import check_rule, resize

# Lake's alphabets and their numbers of characters; the two parts are his two zips.
BACKGROUND = {
    "Alphabet_of_the_Magi": 20,
    "Anglo-Saxon_Futhorc": 29,
    "Arcadian": 26,
    "Armenian": 41,
    "Asomtavruli_(Georgian)": 40,
    "Balinese": 24,
    "Bengali": 46,
    "Blackfoot_(Canadian_Aboriginal_Syllabics)": 14,
    "Braille": 26,
    "Burmese_(Myanmar)": 34,
    "Cyrillic": 33,
    "Early_Aramaic": 22,
    "Futurama": 26,
    "Grantha": 43,
    "Greek": 24,
    "Gujarati": 48,
    "Hebrew": 22,
    "Inuktitut_(Canadian_Aboriginal_Syllabics)": 16,
    "Japanese_(hiragana)": 52,
    "Japanese_(katakana)": 47,
    "Korean": 40,
    "Latin": 26,
    "Malay_(Jawi_-_Arabic)": 40,
    "Mkhedruli_(Georgian)": 41,
    "N_Ko": 33,
    "Ojibwe_(Canadian_Aboriginal_Syllabics)": 14,
    "Sanskrit": 42,
    "Syriac_(Estrangelo)": 23,
    "Tagalog": 17,
    "Tifinagh": 55,
}
EVALUATION = {
    "Angelic": 20,
    "Atemayar_Qelisayer": 26,
    "Atlantean": 26,
    "Aurek-Besh": 26,
    "Avesta": 26,
    "Ge_ez": 26,
    "Glagolitic": 45,
    "Gurmukhi": 45,
    "Kannada": 41,
    "Keble": 26,
    "Malayalam": 47,
    "Manipuri": 40,
    "Mongolian": 30,
    "Old_Church_Slavonic_(Cyrillic)": 45,
    "Oriya": 46,
    "Sylheti": 28,
    "Syriac_(Serto)": 23,
    "Tengwar": 25,
    "Tibetan": 42,
    "ULOG": 26,
}
DRAWERS = 20
SIDE = 105

# The published zips and their md5. A zip already on the disk is not held to it: what counts is the content.
PARTS = {
    "images_background": "68d2efa1b9178cc56df9314c21c6e718",
    "images_evaluation": "6b91aef0f799c5bb55b94e3f2daec811",
}
HOME = "https://github.com/brendenlake/omniglot"
SOURCE = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python"

# SHA-256 over the pixels of all drawings (each class packed to bits), in sorted order of classes and drawers.
DRAWINGS_DIGEST = "48f23b4a742cab18fc0f075c143b88d3186fc2b13bcc01a0cfcb01c8cb7329aa"
# SHA-256 of the finished uint8 array (1623, 20, 1, 28, 28), classes in sorted order, by preprocessing.
FINISHED_DIGESTS = {
    "competition": "00559914519be300f67eff9374a39e4dde77c85ea2c1d4c37a60b2ebe8809293",
    "antialias": "4e30f57b14d62227ba81e7d431afc7de81f542c81260e240e830e0161644e638",
}

_CHECKOUT = Path(__file__).resolve().parent.parent.parent
# Where the package is installed, what is called data beside it is somebody else's.
DATA_DIR = _CHECKOUT / "data" if (_CHECKOUT / "train.py").is_file() else None
MOUNTS = Path("/home/aistudio/data")
CACHE_VERSION = 3
MAX_IMAGE_BYTES = 1 << 16

_IMAGE = re.compile(r"(?:^|/)([^/]+/character\d\d)/\d{4}_(\d\d)\.png$")


def class_names(alphabets: dict[str, int] | None = None) -> list[str]:
    """Sorted names, "Alphabet/characterNN", of the given alphabets (name to number of characters), by default
    all."""
    alphabets = {**BACKGROUND, **EVALUATION} if alphabets is None else alphabets
    return [
        f"{alphabet}/character{i:02d}"
        for alphabet in sorted(alphabets)
        for i in range(1, alphabets[alphabet] + 1)
    ]


def load_omniglot(
    data_dir: str | Path | None = None,
    preprocessing: str = "competition",
    image_size: int = 28,
    download: bool = True,
    cache_dir: str | Path | None = None,
    distortions: int = 0,
) -> ImageSet:
    """Loads all of Omniglot.

    Args:
        data_dir: folder with the two zips, or with them unpacked, also below `python/`, or a zip that holds
            both. Without it: the environment variable OMNIGLOT_DIR, `data/`, the user's cache folder, AI
            Studio's mounts, a download.
        preprocessing: "competition" or "antialias", see `preprocessing.resize`.
        image_size: height and width, in pixels.
        download: whether it may be downloaded, from the folder in the environment variable OMNIGLOT_URL or
            the published place.
        cache_dir: where the decoded images are kept; by default `data/cache`, or the user's cache folder if
            that is read-only.
        distortions: distorted copies of each image, see distortion.py; they follow the 20 drawers' own.

    Returns:
        `ImageSet` of the 1,623 classes in sorted order, uint8 (1623, 20 * (1 + distortions), 1, image_size,
        image_size), drawers in order 01 to 20.

    Raises:
        UserError: nothing found; or something missing, damaged or not Omniglot, which is named.
    """
    check_rule(preprocessing, image_size)
    sources = _find(data_dir, download)
    key = f"{CACHE_VERSION} {preprocessing} {image_size} {distortions} {_identity(sources)}"
    copies = f"-distorted-{distortions}" if distortions else ""
    name = f"omniglot-{preprocessing}-{image_size}{copies}.images"
    shape = len(class_names()), DRAWERS * (1 + distortions), 1, image_size, image_size
    folders = [Path(cache_dir)] if cache_dir is not None else [folder / "cache" for folder in own_folders()]
    for folder in folders:
        found = read_cache(folder / name, key, shape)
        if found:
            images = found[0]
            break
    else:
        buffer, images = space_for(shape)
        _decode(sources, preprocessing, images, distortions)
        write_cache(folders, name, key, buffer, {})
    return ImageSet("omniglot", tuple(class_names()), images)


def digest(images: np.ndarray) -> str:
    """SHA-256 of an array's bytes, to compare with `FINISHED_DIGESTS`."""
    return hashlib.sha256(np.ascontiguousarray(images)).hexdigest()


# Finding


def own_folders() -> list[Path]:
    """Where downloads and caches may go, in order of preference: `data/` of a clone, the user's cache
    folder."""
    user = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "paddle_maml"
    return [DATA_DIR, user] if DATA_DIR and DATA_DIR.is_dir() else [user]


def _find(data_dir, download):
    """The two zips or folders, or the one zip, that hold Omniglot."""
    given = data_dir or os.environ.get("OMNIGLOT_DIR")
    folders = [Path(given).expanduser()] if given else [*own_folders(), *_mounts()]
    for folder in folders:
        sources = _sources_in(folder)
        if len(sources) == 2 or sources and sources[0].stem not in PARTS:
            return sources
    if given and sources:
        other = next(part for part in PARTS if part != sources[0].stem)
        raise UserError(
            f"{given} has {sources[0].name} but no {other}.zip: get it from {HOME}, folder python."
        )
    if given or not download:
        raise UserError(f"There is no Omniglot in {', '.join(map(str, folders))}: {_advice(folders[0])}.")
    return _download(own_folders())


def _mounts():
    return (
        [MOUNTS, *sorted(folder for folder in MOUNTS.iterdir() if folder.is_dir())] if MOUNTS.is_dir() else []
    )


def _advice(folder):
    zips = " and ".join(f"{part}.zip" for part in PARTS)
    return (
        f"get {zips} from {HOME}, folder python, and put them into {folder}, or name their folder with "
        "--data-dir or OMNIGLOT_DIR"
    )


def _sources_in(path):
    """Of each part its zip or folder; where there is none, a zip of another name with Omniglot's images in
    it; else []."""
    if path.is_file():
        if path.stem not in PARTS:
            return [path]
        path = path.parent
    found = []
    for part in PARTS:
        places = [folder / name for folder in (path, path / "python") for name in (f"{part}.zip", part)]
        found += [place for place in places if place.exists()][:1]
    if found:
        return found
    with contextlib.ExitStack() as stack:
        zips = [file for file in sorted(path.glob("*.zip")) if file.is_file()]
        return [file for file in zips if next(_zip_images(file, stack), None)][:1]


def _identity(sources):
    """Changes when the files of the sources change; a digest of their paths, sizes and times."""
    listing = []
    for source in sources:
        listing.append(str(source.resolve()))
        for file in [source] if source.is_file() else sorted(source.glob("*/*/*.png")):
            stat = file.stat()
            listing.append((file.relative_to(source).as_posix(), stat.st_size, stat.st_mtime_ns))
    return hashlib.sha256(repr(listing).encode()).hexdigest()


# Reading


def _zip_images(source, stack, name=None):
    """Yields (class, drawer, where it is, function that reads it) of each image in a zip, or in Lake's zips
    inside it."""
    name = name or str(source)
    with _naming(name, "or not a zip "):
        archive = stack.enter_context(zipfile.ZipFile(source))
    entries = archive.infolist()
    images = [(match, entry) for entry in entries for match in [_IMAGE.search(entry.filename)] if match]
    for match, entry in images:
        yield (
            match[1],
            match[2],
            f"{entry.filename} in {name}",
            partial(_read_entry, archive, entry, MAX_IMAGE_BYTES),
        )
    if not images and isinstance(source, Path):
        for entry in entries:
            if Path(entry.filename).stem in PARTS and entry.filename.endswith(".zip"):
                where = f"{entry.filename} in {name}"
                with _naming(where):
                    inner = io.BytesIO(_read_entry(archive, entry, MAX_BYTES))
                yield from _zip_images(inner, stack, where)


def _read_entry(archive, entry, limit):
    if entry.file_size > limit:
        raise ValueError(f"{entry.file_size} bytes are too many")
    return archive.read(entry)


def _folder_images(folder):
    """The same as `_zip_images` for an unpacked zip."""
    for file in sorted(folder.glob("*/*/*.png")):
        match = _IMAGE.search(file.as_posix())
        if match:
            yield match[1], match[2], str(file), partial(read_whole, file, MAX_IMAGE_BYTES)


@contextlib.contextmanager
def _naming(where, what=""):
    """Whatever zipfile and Pillow raise: of damaged files that is more than they say."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        said = "it is no PNG" if isinstance(error, UnidentifiedImageError) else error
        raise UserError(f"{where} is damaged {what}({said}): get it again.") from error


def _decode(sources, preprocessing, images, distortions):
    """Reads, checks, distorts and resizes every image into uint8 (classes, drawers and copies, 1, image_size,
    image_size)."""
    drawings_digest = hashlib.sha256()
    with contextlib.ExitStack() as stack:
        places = _places(sources, stack)
        for i, name in enumerate(class_names()):
            drawings = np.stack([_read_drawing(*places[name, drawer]) for drawer in range(1, DRAWERS + 1)])
            drawings_digest.update(np.packbits(drawings > 0))
            images[i, :, 0] = resize(
                with_distorted_copies(drawings, distortions, i), preprocessing, images.shape[-1]
            )
    if drawings_digest.hexdigest() != DRAWINGS_DIGEST:
        where = " and ".join(map(str, sources))
        raise UserError(
            f"{where} hold images of the right names and sizes, but not all are Omniglot's: get the zips "
            f"again from {HOME}."
        )


def _places(sources, stack):
    """Where each image is: {(class, drawer): (description, function that reads it)}, complete."""
    expected = {(name, drawer) for name in class_names() for drawer in range(1, DRAWERS + 1)}
    places = {}
    for source in sources:
        for name, drawer, where, read in (
            _zip_images(source, stack) if source.is_file() else _folder_images(source)
        ):
            image = (name, int(drawer))
            if image not in expected or image in places:
                raise UserError(
                    f"{where} is {'there twice' if image in places else 'not an image of Omniglot'}: use "
                    "Omniglot as published."
                )
            places[image] = (where, read)
    missing = sorted(expected - places.keys())
    if missing:
        name, drawer = missing[0]
        raise UserError(
            f"{' and '.join(map(str, sources))}: {len(missing)} of {len(expected)} images are missing, the "
            f"first is {name}, drawer {drawer:02d}: get the zips again from {HOME}."
        )
    return places


def _read_drawing(where, read):
    """One drawing, uint8 (105, 105), ink 0 and paper 255. The size is checked before any pixel is decoded."""
    with _naming(where):
        data = read()
        # Decoding skips some of a PNG's checksums; verify() looks at all of them, and leaves its image
        # unusable.
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if image.size != (SIDE, SIDE):
                raise UserError(
                    f"{where} is {image.width}x{image.height} pixels, not {SIDE}x{SIDE}: use Omniglot as "
                    "published."
                )
            image.verify()
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            return np.where(np.asarray(image.convert("L")) < 128, 0, 255).astype(np.uint8)


# Downloading


def _download(folders):
    """Downloads what is not there yet into the first folder that can be written to; returns the two zips."""
    source = os.environ.get("OMNIGLOT_URL") or SOURCE
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                break
    else:
        raise UserError(
            f"No folder for Omniglot can be written to ({', '.join(map(str, folders))}): "
            f"{_advice('a folder')}."
        )
    files = [folder / f"{part}.zip" for part in PARTS]
    for file, md5 in zip(files, PARTS.values()):
        if not file.exists():
            try:
                write_whole(file, fetch(f"{source.rstrip('/')}/{file.name}", md5))
            except (OSError, ValueError, http.client.HTTPException) as error:
                raise UserError(
                    f"Omniglot is not here and {file.name} could not be had from {source} ({error}): "
                    f"{_advice(folder)}, or set OMNIGLOT_URL to a mirror's folder."
                ) from error
    return files
