"""Files that a stranger made: pickles, arrays, zips and images. Nothing in them runs, none takes the memory,
and each is refused in one sentence."""

import io
import itertools
import os
import pickle
import random
import resource
import struct
import sys
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from trials import assert_refused, count, some

from paddle_maml.commands import cli
from paddle_maml.data import omniglot
from paddle_maml.engine.plain_data import read_file
from paddle_maml.engine.weights import load_weights
from paddle_maml.errors import UserError
from paddle_maml.networks.conv4 import MAML

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="no such files")]


class Call:
    """A pickle of this calls a function."""

    def __init__(self, module, name, *arguments):
        self.called = f"{module}.{name}", (module, name, arguments)

    def __reduce__(self):
        module, name, arguments = self.called[1]
        __import__(module)
        function = sys.modules[module]
        for part in name.split("."):
            function = getattr(function, part)
        return function, arguments


WRAPS = [lambda x: x, lambda x: {"weight": x}, lambda x: [np.zeros(2), (x,)], lambda x: {"a": {"b": [x]}}]


def calls(marker):
    touch = f"open({str(marker)!r}, 'w').close()"
    yield from (
        Call("os", "system", f"touch {marker}"),
        Call("os", "mkdir", str(marker)),
        Call("subprocess", "getoutput", f"touch {marker}"),
        Call("builtins", "eval", touch),
        Call("builtins", "exec", touch),
        Call("builtins", "open", str(marker), "w"),
        Call("io", "open", str(marker), "w"),
        Call("shutil", "copy", __file__, str(marker)),
        Call("pathlib", "Path.touch", marker),
        Call("importlib", "import_module", "this"),
        Call("numpy", "save", str(marker), 1),
        Call("numpy", "fromfile", __file__),
    )


def test_pickles(tmp_path, capfd):
    marker = tmp_path / "ran"
    for number, (call, wrap, protocol) in enumerate(itertools.product(calls(marker), WRAPS, range(6))):
        if number % some(1, 24):
            continue
        file = tmp_path / "model.pdparams"
        file.write_bytes(pickle.dumps(wrap(call), protocol=protocol))
        with pytest.raises(UserError) as error:
            read_file(str(file))
        assert "\n" not in str(error.value)
        if number % 24 == 0:
            assert_refused(capfd, cli.main_eval, ["--weights", str(file), "--dataset", "synthetic"])
        assert not list(tmp_path.glob("ran*"))
        count("hostile pickles, nothing executed")


def test_pickles_made_of_random_instructions(tmp_path):
    """Sound ones with bytes changed, and noise: they are read as plain values or refused."""
    draw, file = random.Random(3), tmp_path / "model.pdparams"
    sound = pickle.dumps({"a": np.arange(4.0), "b": [1, "x", None, (2.5, b"y")]}, protocol=4)
    for _ in range(some(3000, 200)):
        data = bytearray(sound if draw.random() < 0.8 else draw.randbytes(draw.randrange(300)) + b".")
        for _ in range(draw.randrange(1, 6)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        file.write_bytes(data)
        try:
            read_file(str(file))
        except UserError as error:
            assert len(str(error).splitlines()) == 1
        count("pickles with bytes changed at random, read or refused")


def npz(*members, compression=zipfile.ZIP_DEFLATED):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", compression) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return data.getvalue()


def npy(shape, descr="'<f4'", data=b"", header=None):
    header = header or f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", len(header)) + header.encode() + data


def hostile_arrays(marker):
    objects = io.BytesIO()
    np.save(objects, np.array([Call("os", "mkdir", str(marker))], dtype=object))
    lie = npz(("p00.npy", npy("(4,)", data=bytes(16))))
    return {
        "objects": npz(("p00.npy", objects.getvalue())),
        "objects, called numbers": npz(("p00.npy", npy("(1,)", "'|O'", objects.getvalue()[80:]))),
        "a shape of terabytes": npz(("p00.npy", npy("(1 << 42,)".replace("1 << 42", str(1 << 42))))),
        "a shape that overflows": npz(("p00.npy", npy(f"({1 << 40}, {1 << 40})"))),
        "a negative shape": npz(("p00.npy", npy("(-5,)", data=bytes(16)))),
        "code for a header": npz(("p00.npy", npy("(1,)", header=f"__import__('os').mkdir({str(marker)!r})"))),
        "a deep header": npz(("p00.npy", npy("(1,)", header="(" * 5000 + ")" * 5000))),
        "a long header": npz(("p00.npy", npy("(1,)", header=" " * 10**7))),
        "zeros without end": npz(("p00.npy", npy("(300000000,)", data=bytes(1 << 26)))),
        "more than it says": lie.replace(struct.pack("<I", len(npy("(4,)", data=bytes(16)))), b"\x01\0\0\0"),
        "a path that leaves": npz(("../../p00.npy", npy("(4,)", data=bytes(16)))),
        "cut": lie[: len(lie) // 2],
        "no arrays": npz(("readme.txt", b"hello")),
        "nothing": npz(),
        "a code that nobody knows": lie.replace(b"\x08\0", b"\x63\0"),
        "locked": lie.replace(b"PK\x03\x04\x14\0\0\0", b"PK\x03\x04\x14\0\x01\0").replace(
            b"PK\x01\x02\x14\x03\x14\0\0\0", b"PK\x01\x02\x14\x03\x14\0\x01\0"
        ),
    }


def test_arrays(tmp_path, capfd):
    marker, file = tmp_path / "ran", tmp_path / "weights.npz"
    network = MAML(n_way=5, width=4)
    for number, (what, data) in enumerate(hostile_arrays(marker).items()):
        file.write_bytes(data)
        with pytest.raises(UserError) as error:
            load_weights(network, str(file))
        assert "\n" not in str(error.value), what
        if number % some(1, 8) == 0:
            assert_refused(capfd, cli.main_eval, ["--weights", str(file), "--dataset", "synthetic"])
        assert not marker.exists() and sorted(os.listdir(tmp_path)) == ["weights.npz"]
        count("hostile files of arrays (.npz), nothing executed")


# ---- images and zips, on a stand-in of two characters ----


NAMES = [f"images_background/Latin/character01/0009_{drawer:02}.png" for drawer in range(1, 21)]
FIRST = NAMES[0]


def png(seed=0):
    data = io.BytesIO()
    picture = np.where(np.random.RandomState(seed).rand(105, 105) < 0.1, 0, 255).astype(np.uint8)
    Image.fromarray(picture).convert("1").save(data, "PNG")
    return data.getvalue()


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    monkeypatch.setattr(omniglot, "BACKGROUND", {"Latin": 1})
    monkeypatch.setattr(omniglot, "EVALUATION", {"Angelic": 1})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(omniglot, "DATA_DIR", tmp_path / "nowhere")
    parts = ("background/Latin", "evaluation/Angelic")
    return {
        name.replace("background/Latin", part): png(seed) for part in parts for seed, name in enumerate(NAMES)
    }


def unpack(files, folder):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def header(width, height, depth=1, colour=0, interlace=0):
    return b"\x89PNG\r\n\x1a\n" + chunk(
        b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    )


def with_text(kind):
    info, data = PngImagePlugin.PngInfo(), io.BytesIO()
    if kind == "text":
        info.add_text("a", "x" * (1 << 26), zip=True)
    Image.new("1", (105, 105)).save(data, "PNG", pnginfo=info)
    return data.getvalue()


def other_format(name):
    data = io.BytesIO()
    Image.new("L", (105, 105)).save(data, name)
    return data.getvalue()


def hostile_images():
    end, bomb = chunk(b"IEND", b""), zlib.compress(bytes(1 << 24))
    return {
        "empty": b"",
        "noise": bytes(range(256)) * 100,
        "65535 x 65535": header(65535, 65535) + chunk(b"IDAT", bomb) + end,
        "2 ** 31 - 1 wide": header(2**31 - 1, 2**31 - 1) + chunk(b"IDAT", bomb) + end,
        "no pixels": header(105, 105) + end,
        "no size": header(0, 0) + chunk(b"IDAT", bomb) + end,
        "a bomb in the pixels": header(105, 105) + chunk(b"IDAT", bomb)[:-1] + end,
        "a palette without one": header(105, 105, 8, 3) + chunk(b"IDAT", bomb)[:100] + end,
        "depth of 255": header(105, 105, 255) + chunk(b"IDAT", bomb) + end,
        "a bomb in a text": with_text("text"),
        "a bomb in a profile": header(105, 105) + chunk(b"iCCP", b"a\0\0" + bomb) + end,
        "a chunk that never ends": header(105, 105) + b"\xff\xff\xff\xffIDAT",
        "cut": png()[:400],
        "a GIF": other_format("GIF"),
        "a TIFF": other_format("TIFF"),
        "an EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 105 105\n(/bin/id) run\n",
    }


def load(folder, tmp_path):
    return omniglot.load_omniglot(folder, cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_images(stand_in, tmp_path, capfd, form):
    for number, (what, data) in enumerate(hostile_images().items()):
        folder = tmp_path / str(number)
        files = {**stand_in, FIRST: data}
        if form == "folder":
            unpack(files, folder)
        else:
            folder.mkdir()
            (folder / "all.zip").write_bytes(npz(*files.items()))
        with pytest.raises(UserError) as error:
            load(folder, tmp_path)
        assert "\n" not in str(error.value) and "0009_01.png" in str(error.value), (what, error.value)
        count("hostile images, in folders and in zips")


@pytest.mark.parametrize("what", ["/dev/zero", "/dev/random", "pipe", "folder", "dangling", "circle"])
def test_what_is_no_file(stand_in, tmp_path, what):
    unpack(stand_in, tmp_path / "data")
    place = tmp_path / "data" / FIRST
    place.unlink()
    if what == "pipe":
        os.mkfifo(place)
    elif what == "folder":
        place.mkdir()
    else:
        place.symlink_to({"dangling": "nowhere", "circle": place}.get(what, what))
    with pytest.raises((UserError, OSError)) as error:
        load(tmp_path / "data", tmp_path)
    assert "\n" not in str(error.value)
    count("devices, pipes, folders and links in the place of an image")


def test_images_with_bits_changed_at_random(stand_in, tmp_path):
    """A drawing that is read is a published one: the digest over all of them is for that."""
    draw = random.Random(5)
    for number in range(some(500, 40)):
        data = bytearray(stand_in[FIRST])
        for _ in range(draw.randrange(1, 4)):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "all.zip").write_bytes(npz(*{**stand_in, FIRST: bytes(data)}.items()))
        with pytest.raises(UserError):
            load(folder, tmp_path)
        count("images with bits changed at random, refused")


def hostile_zips(files):
    whole = npz(*files.items())
    inner = npz(("images_background.zip", npz(("images_background.zip", whole))))
    twice = npz(*files.items(), (FIRST.replace("0009", "0010"), png()))
    return {
        "empty": b"",
        "no zip": b"PK\x05\x06" + b"\xff" * 18,
        "cut": whole[:-100],
        "a beginning that is missing": whole[1000:],
        "a bomb": npz((FIRST, bytes(1 << 28))),
        "a bomb of zips": npz(("images_background.zip", bytes(1 << 27)), ("images_evaluation.zip", b"")),
        "zips in zips in zips": inner,
        "twice": twice,
        "more than Omniglot": npz(*files.items(), ("x/Klingon/character01/0001_01.png", png())),
        "paths that leave": npz(*((f"../../../tmp/{name}x", data) for name, data in files.items())),
        "absolute paths": npz(*((f"/tmp/{name}.exe", data) for name, data in files.items())),
        "half of it": npz(*list(files.items())[:20]),
        "a code that nobody knows": whole.replace(
            b"PK\x03\x04\x14\0\0\0\x08", b"PK\x03\x04\x14\0\0\0\x63"
        ).replace(b"PK\x01\x02\x14\x03\x14\0\0\0\x08", b"PK\x01\x02\x14\x03\x14\0\0\0\x63"),
        "locked": whole.replace(b"PK\x03\x04\x14\0\0\0", b"PK\x03\x04\x14\0\x01\0").replace(
            b"PK\x01\x02\x14\x03\x14\0\0\0", b"PK\x01\x02\x14\x03\x14\0\x01\0"
        ),
        "a hundred thousand entries": npz(*((f"{number}", b"") for number in range(100_000))),
    }


def test_zips(stand_in, tmp_path, monkeypatch, capfd):
    before = set(os.listdir("/tmp"))
    for number, (what, data) in enumerate(hostile_zips(stand_in).items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "omniglot.zip").write_bytes(data)
        arguments = ["--data-dir", str(folder), "--output", str(tmp_path / "run"), "--processes", "1"]
        sentence = assert_refused(capfd, cli.main_train, arguments)
        assert not (tmp_path / "run").exists() and os.listdir(folder) == ["omniglot.zip"], (what, sentence)
        count("hostile zips, nothing written")
    assert {name for name in set(os.listdir("/tmp")) - before if name.startswith("images")} == set()


def test_memory_stays_small(stand_in, tmp_path):
    """Of the process that did all of the above: bombs of gigabytes were refused before they were unpacked."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << (10 if sys.platform == "linux" else 20))
    assert peak < 4096
    count("MiB that the process with all of these had at most", round(peak))
