"""Omniglot: found, checked, decoded, cached, downloaded; on a small stand-in with two alphabets, and on the
real one where it is."""

import functools
import hashlib
import io
import json
import os
import shutil
import struct
import time
import warnings
import zipfile
import zlib

import numpy as np
import pytest
from faulty_server import FaultyServer
from PIL import Image

from paddle_maml import files
from paddle_maml.data import download
from paddle_maml.data import omniglot as module
from paddle_maml.data.distortion import with_distorted_copies
from paddle_maml.data.image_cache import HEAD, space_for, write_cache
from paddle_maml.data.omniglot import FINISHED_DIGESTS, class_names, digest, load_omniglot
from paddle_maml.data.splits import split_classes
from paddle_maml.errors import UserError

# SHA-256 of train, val and test of the arrays that the competition published, uint8 (classes, 20, 1, 28, 28).
COMPETITION = {
    "train": "ab9979d9c6943d9050df327614fed2187163a925e38d3b297d82bd6b69bf4d31",
    "val": "bdc2de6f77759826d633acca68133b50382532841ed7b8b16d197c6e01eb9257",
    "test": "7c5b70ad06bae4775e1ad947b54867462854a64b8e48790e8b3ceb6c4804611d",
}


# The real one


def test_every_image_equals_the_competitions(omniglot):
    for part, classes in split_classes(omniglot.classes, "competition").items():
        assert digest(omniglot.subset(classes).images) == COMPETITION[part]
    assert digest(omniglot.images) == FINISHED_DIGESTS["competition"]


def test_every_image_equals_the_competitions_arrays(omniglot):
    """The same against the arrays themselves: COMPETITION_ARRAYS names an .npz with train, val and test."""
    if "COMPETITION_ARRAYS" not in os.environ:
        pytest.skip("COMPETITION_ARRAYS is not set")
    with np.load(os.environ["COMPETITION_ARRAYS"], allow_pickle=False) as arrays:
        for part, classes in split_classes(omniglot.classes, "competition").items():
            np.testing.assert_array_equal(omniglot.subset(classes).images, arrays[part])


def test_antialias_digest(omniglot):
    assert (
        digest(load_omniglot(preprocessing="antialias", download=False).images)
        == FINISHED_DIGESTS["antialias"]
    )


def test_names_and_shape(omniglot):
    assert (
        omniglot.name == "omniglot"
        and len(omniglot.classes) == 1623
        and list(omniglot.classes) == sorted(omniglot.classes)
    )
    assert omniglot.images.shape == (1623, 20, 1, 28, 28) and omniglot.images.dtype == np.uint8


# The stand-in


def drawing(seed):
    return np.where(np.random.RandomState(seed).rand(105, 105) < 0.1, 0, 255).astype(np.uint8)


def png(image):
    data = io.BytesIO()
    Image.fromarray(image).convert("1").save(data, "PNG")
    return data.getvalue()


@pytest.fixture(scope="module")
def pictures():
    """{part: {path in its zip: PNG}} of two alphabets."""
    parts = {
        "images_background": ["Latin/character01", "Latin/character02"],
        "images_evaluation": ["Angelic/character01"],
    }
    files, number = {}, 0
    for part, names in parts.items():
        files[part] = {}
        for name in names:
            for drawer in range(1, 21):
                files[part][f"{part}/{name}/{len(files) + 8:04d}_{drawer:02d}.png"] = png(drawing(number))
                number += 1
    return files


@pytest.fixture(autouse=True)
def elsewhere(request, monkeypatch, tmp_path, pictures):
    """For tests with the stand-in: it counts as Omniglot, and nothing outside the test's folder is looked
    at."""
    if "omniglot" in request.fixturenames:
        return
    monkeypatch.setattr(module, "BACKGROUND", {"Latin": 2})
    monkeypatch.setattr(module, "EVALUATION", {"Angelic": 1})
    # Angelic comes first; its drawings are numbers 40 to 59.
    bits = [
        np.packbits([drawing(number) > 0 for number in range(first, first + 20)]).tobytes()
        for first in (40, 0, 20)
    ]
    monkeypatch.setattr(module, "DRAWINGS_DIGEST", hashlib.sha256(b"".join(bits)).hexdigest())
    monkeypatch.setattr(module, "DATA_DIR", tmp_path / "data")
    monkeypatch.setattr(module, "MOUNTS", tmp_path / "mounts")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.delenv("OMNIGLOT_DIR", raising=False)
    monkeypatch.delenv("OMNIGLOT_URL", raising=False)


def zipped(files, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def two_zips(pictures, folder):
    for part, entries in pictures.items():
        zipped(entries, folder / f"{part}.zip")
    return folder


def unpacked(pictures, folder):
    for entries in pictures.values():
        for name, data in entries.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
    return folder


def check(images):
    assert images.classes == ("Angelic/character01", "Latin/character01", "Latin/character02")
    expected = np.stack([drawing(number) for number in [*range(40, 60), *range(40)]]).reshape(
        3, 20, 1, 105, 105
    )
    np.testing.assert_array_equal(images.images, expected)


def changed(pictures, place, data):
    """The stand-in with one image replaced, or left out."""
    files = {part: dict(entries) for part, entries in pictures.items()}
    part = place.split("/")[0]
    assert place in files[part]
    files[part][place] = data
    if data is None:
        del files[part][place]
    return files


FIRST = "images_evaluation/Angelic/character01/0010_01.png"


@pytest.mark.parametrize(
    "form",
    [
        lambda p, f: two_zips(p, f),
        lambda p, f: two_zips(p, f / "python").parent,
        lambda p, f: unpacked(p, f),
        lambda p, f: unpacked(p, f / "python").parent,
        lambda p, f: two_zips(p, f) / "images_evaluation.zip",
        lambda p, f: zipped({**p["images_background"], **p["images_evaluation"]}, f / "omniglot.zip"),
        lambda p, f: (
            zipped(
                {f"deep/er/{n}": d for files in p.values() for n, d in files.items()}, f / "omniglot.zip"
            ).parent
        ),
        lambda p, f: (
            zipped(
                {f"x/{part}.zip": zipped(files, f / "t").read_bytes() for part, files in p.items()},
                f / "o" / "omniglot.zip",
            ).parent
        ),
    ],
)
def test_forms_of_a_folder_that_is_named(pictures, tmp_path, form, monkeypatch):
    folder = form(pictures, tmp_path / "given")
    check(load_omniglot(folder, image_size=105, cache_dir=tmp_path / "cache"))
    monkeypatch.setenv("OMNIGLOT_DIR", str(folder))
    check(load_omniglot(image_size=105, cache_dir=tmp_path / "cache2"))


@pytest.mark.parametrize("place", ["data", "user/paddle_maml", "mounts/data12345", "mounts"])
def test_places_that_are_looked_at(pictures, tmp_path, place):
    two_zips(pictures, tmp_path / place)
    check(load_omniglot(image_size=105, download=False))


def test_strange_files_beside_the_images_do_no_harm(pictures, tmp_path):
    files = dict(pictures["images_background"])
    files.update(
        {
            "__MACOSX/images_background/Latin/character01/._0009_01.png": b"",
            "images_background/.DS_Store": b"x",
        }
    )
    two_zips({**pictures, "images_background": files}, tmp_path)
    check(load_omniglot(tmp_path, image_size=105, cache_dir=tmp_path / "cache"))


def damaged_pixels():
    """A PNG whose pixel data were changed after its checksum was made."""
    data = bytearray(png(drawing(40)))
    data[data.index(b"IDAT") + 900] ^= 1
    return bytes(data)


def damaged_checksum():
    """A PNG that decodes, but whose pixel data do not agree with their checksum."""
    data = bytearray(png(drawing(40)))
    data[data.index(b"IEND") - 5] ^= 1
    return bytes(data)


def huge():
    """A PNG that claims 8000x8000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 8000, 8000, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + header
        + struct.pack(">I", zlib.crc32(header))
        + png(drawing(0))[33:]
    )


@pytest.mark.parametrize("form", [two_zips, unpacked])
@pytest.mark.parametrize(
    "data, message",
    [
        (None, "1 of 60 images are missing, the first is Angelic/character01, drawer 01"),
        (b"", "0010_01.png.* is damaged"),
        (b"not a png", "0010_01.png.* is damaged"),
        (png(drawing(40))[:700], "0010_01.png.* is damaged"),
        (damaged_pixels(), "0010_01.png.* is damaged"),
        (damaged_checksum(), "0010_01.png.* is damaged"),
        (png(drawing(40)) + b"0" * 70000, "0010_01.png.* is damaged.*too many"),
        (png(np.zeros((28, 105), np.uint8)), "0010_01.png.* is 105x28 pixels, not 105x105"),
        (huge(), "0010_01.png.* is 8000x8000 pixels"),
        (png(drawing(99)), "not all are Omniglot's"),
    ],
)
def test_a_wrong_image_is_named(pictures, tmp_path, form, data, message):
    form(changed(pictures, FIRST, data), tmp_path)
    with pytest.raises(UserError, match=message):
        load_omniglot(tmp_path, cache_dir=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    "extra, message",
    [
        ("Klingon/character01/0010_01.png", "Klingon/character01/0010_01.png.*not an image of Omniglot"),
        ("Angelic/character01/0010_21.png", "0010_21.png.*not an image of Omniglot"),
        ("Angelic/character01/0011_01.png", "0011_01.png.*there twice"),
    ],
)
def test_an_image_too_many_is_named(pictures, tmp_path, extra, message):
    two_zips(pictures, tmp_path)
    zipped(
        {**pictures["images_evaluation"], f"images_evaluation/{extra}": png(drawing(1))},
        tmp_path / "images_evaluation.zip",
    )
    with pytest.raises(UserError, match=message):
        load_omniglot(tmp_path, cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("cut", [0, 1000, -10])
def test_a_truncated_zip_is_named(pictures, tmp_path, cut):
    file = two_zips(pictures, tmp_path) / "images_evaluation.zip"
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(UserError, match="images_evaluation.zip is damaged"):
        load_omniglot(tmp_path, cache_dir=tmp_path / "cache")


def test_a_changed_byte_in_a_zip_is_named(pictures, tmp_path):
    file = two_zips(pictures, tmp_path) / "images_evaluation.zip"
    data = bytearray(file.read_bytes())
    data[600] ^= 255
    file.write_bytes(data)
    with pytest.raises(UserError, match="0010_01.png in .*images_evaluation.zip is damaged"):
        load_omniglot(tmp_path, cache_dir=tmp_path / "cache")


def test_a_named_folder_without_omniglot_is_an_error(pictures, tmp_path, monkeypatch):
    two_zips(pictures, tmp_path / "data")
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "absent"):
        with pytest.raises(
            UserError,
            match=(
                f"There is no Omniglot in {folder}: get images_background.zip and images_evaluation.zip "
                "from https"
            ),
        ):
            load_omniglot(folder)
    monkeypatch.setenv("OMNIGLOT_DIR", str(tmp_path / "empty"))
    with pytest.raises(UserError, match="There is no Omniglot in"):
        load_omniglot()


def test_half_of_it_is_an_error(pictures, tmp_path):
    zipped(pictures["images_background"], tmp_path / "images_background.zip")
    with pytest.raises(UserError, match="has images_background.zip but no images_evaluation.zip"):
        load_omniglot(tmp_path)


def test_bad_settings(tmp_path):
    with pytest.raises(UserError, match="image_size is 0"):
        load_omniglot(tmp_path, image_size=0)
    with pytest.raises(UserError, match='preprocessing is "opencv"'):
        load_omniglot(tmp_path, preprocessing="opencv")


def test_real_class_names(monkeypatch):
    monkeypatch.undo()
    names = class_names()
    assert len(names) == 1623 and names == sorted(names) and len({name.split("/")[0] for name in names}) == 50
    assert len(class_names(module.BACKGROUND)) == 964 and len(class_names(module.EVALUATION)) == 659


def test_distorted_copies_follow_the_drawings(pictures, tmp_path):
    folder = two_zips(pictures, tmp_path / "given")
    plain, images = (
        load_omniglot(folder, image_size=105, cache_dir=tmp_path / "cache", distortions=copies).images
        for copies in (0, 2)
    )
    assert images.shape == (3, 60, 1, 105, 105)
    for number, drawings in enumerate(plain):
        np.testing.assert_array_equal(images[number, :, 0], with_distorted_copies(drawings[:, 0], 2, number))


# The cache


def refuse(*_):
    raise AssertionError("decoded again")


def test_the_second_time_nothing_is_decoded(pictures, tmp_path, monkeypatch):
    two_zips(pictures, tmp_path / "given")
    load_omniglot(tmp_path / "given", cache_dir=tmp_path / "cache", image_size=105)
    monkeypatch.setattr(module, "_decode", refuse)
    check(load_omniglot(tmp_path / "given", cache_dir=tmp_path / "cache", image_size=105))
    assert [file.name for file in (tmp_path / "cache").iterdir()] == ["omniglot-competition-105.images"]
    for other in (
        {"image_size": 14},
        {"preprocessing": "antialias", "image_size": 105},
        {"distortions": 1, "image_size": 105},
    ):
        with pytest.raises(AssertionError, match="decoded again"):
            load_omniglot(tmp_path / "given", cache_dir=tmp_path / "cache", **other)


@pytest.mark.parametrize("form", [two_zips, unpacked])
def test_another_source_is_decoded_anew(pictures, tmp_path, monkeypatch, form):
    folder = form(pictures, tmp_path / "given")
    load_omniglot(folder, cache_dir=tmp_path / "cache")
    shutil.copytree(folder, tmp_path / "copy")
    file = next(file for file in folder.rglob("*") if file.is_file())
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 10**9))
    monkeypatch.setattr(module, "_decode", refuse)
    for source in (folder, tmp_path / "copy"):
        with pytest.raises(AssertionError, match="decoded again"):
            load_omniglot(source, cache_dir=tmp_path / "cache")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: b"",
        lambda data: b"garbage",
        lambda data: data[: len(data) // 2],
        lambda data: data[:9000] + bytes([data[9000] ^ 1]) + data[9001:],
    ],
)
def test_a_damaged_cache_is_made_again(pictures, tmp_path, spoil):
    two_zips(pictures, tmp_path / "given")
    file = tmp_path / "cache" / "omniglot-competition-105.images"
    load_omniglot(tmp_path / "given", cache_dir=tmp_path / "cache", image_size=105)
    whole = file.read_bytes()
    file.write_bytes(spoil(whole))
    check(load_omniglot(tmp_path / "given", cache_dir=tmp_path / "cache", image_size=105))
    assert file.read_bytes()[-1000:] == whole[-1000:] and len(list(file.parent.iterdir())) == 1


def test_a_forged_cache_with_the_right_key_is_made_again(pictures, tmp_path):
    """Of fewer classes, or of floats: it has another length."""
    two_zips(pictures, tmp_path / "given")
    file = tmp_path / "cache" / "omniglot-competition-105.images"
    load_omniglot(tmp_path / "given", cache_dir=tmp_path / "cache", image_size=105)
    key = json.loads(file.read_bytes()[:HEAD])["key"]
    for shape in ((1, 20, 1, 105, 105), (3, 20, 1, 105, 105 * 4)):
        buffer, pixels = space_for(shape)
        pixels[:] = 7
        write_cache([file.parent], file.name, key, buffer, {})
        check(load_omniglot(tmp_path / "given", cache_dir=tmp_path / "cache", image_size=105))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no such files")
@pytest.mark.parametrize("kind", ["device", "pipe"])
def test_what_never_ends_is_not_waited_for(pictures, tmp_path, kind):
    folder, cache = unpacked(pictures, tmp_path / "given"), tmp_path / "cache"
    cache.mkdir()
    os.mkfifo(tmp_path / "pipe")
    (cache / "omniglot-competition-105.images").symlink_to(tmp_path / "pipe")
    check(load_omniglot(folder, cache_dir=cache, image_size=105))
    assert (tmp_path / "pipe").is_fifo()
    (folder / FIRST).unlink()
    (folder / FIRST).symlink_to("/dev/zero" if kind == "device" else tmp_path / "pipe")
    with pytest.raises(UserError, match="0010_01.png is damaged .it is no file.: get it again"):
        load_omniglot(folder, cache_dir=cache, image_size=105)


def test_the_cache_goes_elsewhere_if_data_is_read_only(pictures, tmp_path, monkeypatch):
    two_zips(pictures, tmp_path / "data")
    # A file where the folder should be refuses every user, root too.
    (tmp_path / "data" / "cache").write_text("")
    check(load_omniglot(image_size=105))
    assert (tmp_path / "user" / "paddle_maml" / "cache" / "omniglot-competition-105.images").is_file()
    monkeypatch.setattr(module, "_decode", refuse)
    check(load_omniglot(image_size=105))


def test_without_a_cache_it_still_works(pictures, tmp_path):
    two_zips(pictures, tmp_path / "given")
    (tmp_path / "cache").write_text("")
    with pytest.warns(UserWarning, match="decoded anew each time"):
        check(load_omniglot(tmp_path / "given", image_size=105, cache_dir=tmp_path / "cache"))


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError):
        files.write_whole(tmp_path / "file", b"content")
    assert not list(tmp_path.iterdir())


# The download


@pytest.fixture
def server(pictures, tmp_path, monkeypatch):
    folder = two_zips(pictures, tmp_path / "served")
    server = FaultyServer(folder)
    monkeypatch.setenv("OMNIGLOT_URL", server.url + "/")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(
        module,
        "PARTS",
        {part: hashlib.md5((folder / f"{part}.zip").read_bytes()).hexdigest() for part in module.PARTS},
    )
    monkeypatch.setattr(module, "fetch", functools.partial(download.fetch, pause=0, timeout=0.5))
    (tmp_path / "data").mkdir()
    yield server
    server.close()


@pytest.mark.parametrize("faults", [[], ["refuse"], ["cut", "spoil"], ["stall", None, "cut"]])
def test_download_gets_there(server, tmp_path, faults, capsys):
    server.faults = list(faults)
    check(load_omniglot(image_size=105))
    assert sorted(file.name for file in (tmp_path / "data").iterdir()) == [
        "cache",
        "images_background.zip",
        "images_evaluation.zip",
    ]
    printed = capsys.readouterr().err
    assert "images_background.zip" in printed and "MB" in printed
    load_omniglot(image_size=28)
    assert len(server.asked) == 2 + len([fault for fault in faults if fault])


@pytest.mark.parametrize("fault", ["refuse", "cut", "spoil", "stall", "drip"])
def test_failed_download_says_what_to_do_and_leaves_nothing(server, tmp_path, fault):
    server.faults, start = [fault] * 3, time.monotonic()
    with pytest.raises(
        UserError,
        match=f"images_background.zip could not be had from {server.url}.*get .*zip from https://github.com.*OMNIGLOT_DIR",
    ):
        load_omniglot()
    assert len(server.asked) == 3 and not list((tmp_path / "data").iterdir())
    assert time.monotonic() - start < 5


def test_download_fetches_only_what_is_missing(server, pictures, tmp_path):
    zipped(pictures["images_background"], tmp_path / "data" / "images_background.zip")
    check(load_omniglot(image_size=105))
    assert server.asked == ["/images_evaluation.zip"]


def test_download_only_if_allowed(server, tmp_path):
    with pytest.raises(UserError, match="There is no Omniglot in"):
        load_omniglot(download=False)
    assert not server.asked


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "nonsense", "file:///nowhere", "ftp://127.0.0.1:1"])
def test_unreachable_source(server, monkeypatch, url):
    monkeypatch.setenv("OMNIGLOT_URL", url)
    with pytest.raises(UserError, match=f"could not be had from {url}"):
        load_omniglot()


def test_endless_download_is_cut_off(server, monkeypatch):
    monkeypatch.setattr(download, "MAX_BYTES", 1000)
    with pytest.raises(UserError, match="more than 1000 bytes"):
        load_omniglot()


def test_nothing_warns(pictures, tmp_path):
    """No file is left open, nothing is deprecated."""
    two_zips(pictures, tmp_path / "given")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_omniglot(tmp_path / "given", cache_dir=tmp_path / "cache")
