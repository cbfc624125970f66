"""What is read of an image file, and what is refused before it is opened or decoded."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from paddle_maml.data.image_files import MOST_BYTES, UnusableImage, as_seen, read_image, to_array
from paddle_maml.errors import UserError

RED, BLUE = (200, 0, 0), (0, 0, 200)


def half_red(width=6, height=4):
    """The left half red, the right half blue: an RGB image."""
    image = Image.new("RGB", (width, height), BLUE)
    image.paste(RED, (0, 0, width // 2, height))
    return image


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width, height):
    """A PNG that says how large it is, and has no pixels."""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.jpeg", "a.bmp", "a.webp"])
def test_four_formats(tmp_path, name):
    half_red(60, 40).save(tmp_path / name)
    image = read_image(tmp_path / name, 3)
    assert image.shape == (3, 40, 60) and image.dtype == np.uint8
    np.testing.assert_allclose(image[:, 20, 10], RED, atol=4)
    np.testing.assert_allclose(image[:, 20, 50], BLUE, atol=4)
    grey = read_image(tmp_path / name, 1)
    assert grey.shape == (1, 40, 60)
    np.testing.assert_allclose(grey[0, 20, 10], 0.299 * 200, atol=4)


def test_the_content_tells_the_format_and_not_the_name(tmp_path):
    half_red().save(tmp_path / "picture", format="PNG")
    assert read_image(tmp_path / "picture", 3)[0, 0, 0] == 200
    half_red().save(tmp_path / "other.png", format="GIF")
    with pytest.raises(UnusableImage, match="other.png is no PNG, JPEG, BMP or WebP image"):
        read_image(tmp_path / "other.png", 3)


def test_the_whole_picture_is_shrunk_by_all_of_its_pixels(tmp_path):
    stripes = np.tile(np.array([0, 255], np.uint8), (30, 45))  # columns by turns black and white
    Image.fromarray(stripes).save(tmp_path / "stripes.png")
    small = read_image(tmp_path / "stripes.png", 1, image_size=15)
    assert small.shape == (1, 15, 15)
    np.testing.assert_allclose(small, 127.5, atol=8)
    half_red(90, 30).save(tmp_path / "wide.png")
    wide = read_image(tmp_path / "wide.png", 3, image_size=10)
    assert (wide[0, :, :3] > 190).all() and (wide[2, :, -3:] > 190).all()  # both ends are there


def test_what_a_viewer_shows():
    assert to_array(Image.new("1", (2, 3), 1), 1).tolist() == [[[255, 255]] * 3]
    palette = half_red().convert("P", palette=Image.ADAPTIVE)
    assert palette.mode == "P" and tuple(to_array(palette, 3)[:, 0, 0]) == RED
    ink = Image.new("RGBA", (1, 2), (0, 0, 0, 255))
    ink.putpixel((0, 1), (0, 0, 0, 0))
    assert to_array(ink, 1).tolist() == [[[0], [255]]]  # paper where it is transparent
    assert as_seen(Image.new("LA", (1, 1), (0, 0))).mode == "L"
    deep = Image.fromarray(np.array([[0, 256, 65535]], np.uint16))
    assert to_array(deep, 1).tolist() == [[[0, 1, 255]]]
    assert to_array(half_red().convert("CMYK"), 3).shape == (3, 4, 6)


def test_pixels_are_not_inverted_and_grey_becomes_three_equal_channels():
    image = Image.fromarray(np.array([[0, 10], [200, 255]], np.uint8))
    assert to_array(image, 1).tolist() == [[[0, 10], [200, 255]]]
    assert to_array(image, 3).tolist() == [[[0, 10], [200, 255]]] * 3


def test_a_picture_is_turned_as_the_camera_says(tmp_path):
    picture, entries = half_red(), Image.Exif()
    entries[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise
    picture.save(tmp_path / "turned.png", exif=entries)
    image = read_image(tmp_path / "turned.png", 3)
    assert image.shape == (3, 6, 4) and tuple(image[:, 0, 0]) == RED and tuple(image[:, 5, 0]) == BLUE


@pytest.mark.parametrize("width, height", [(30000, 30000), (65536, 1), (10000, 9000)])
def test_too_many_pixels_are_refused_before_one_is_decoded(tmp_path, width, height, recwarn):
    (tmp_path / "bomb.png").write_bytes(png_header(width, height))
    with pytest.raises(UnusableImage, match="too many"):
        read_image(tmp_path / "bomb.png", 3)
    assert not recwarn.list


def test_too_many_bytes_are_not_read(tmp_path):
    with open(tmp_path / "large.png", "wb") as file:
        file.truncate(MOST_BYTES + 1)
    with pytest.raises(UnusableImage, match=f"large.png has {MOST_BYTES + 1} bytes, more than"):
        read_image(tmp_path / "large.png", 3)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.bmp", "a.webp"])
def test_a_damaged_file_is_named(tmp_path, name):
    half_red(60, 40).save(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    for cut in (0, 10, len(whole) // 2):
        (tmp_path / name).write_bytes(whole[:cut])
        with pytest.raises(UnusableImage, match=name):
            read_image(tmp_path / name, 3)


def test_no_byte_of_a_file_makes_another_error(tmp_path):
    numbers = np.random.RandomState(0)
    for name in ("a.png", "a.jpg", "a.bmp", "a.webp"):
        half_red(16, 16).save(tmp_path / name)
        whole = (tmp_path / name).read_bytes()
        for _ in range(60):
            broken = bytearray(whole)
            broken[numbers.randint(len(broken))] = numbers.randint(256)
            (tmp_path / name).write_bytes(broken)
            try:
                assert read_image(tmp_path / name, 3, image_size=8).shape == (3, 8, 8)
            except UnusableImage as error:
                assert name in str(error)


def test_special_files_are_never_opened(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.png")
    os.symlink("/dev/zero", tmp_path / "endless.png")
    monkeypatch.setattr(os, "open", lambda *arguments: pytest.fail("it was opened"))
    for name in ("pipe.png", "endless.png"):
        with pytest.raises(UnusableImage, match=f"{name} is no regular file"):
            read_image(tmp_path / name, 3)
    with pytest.raises(UnusableImage, match="is a folder"):
        read_image(tmp_path, 3)
    with pytest.raises(UnusableImage, match="none.png cannot be read .No such file"):
        read_image(tmp_path / "none.png", 3)


def test_a_file_that_takes_the_place_of_another_is_looked_at_again(tmp_path, monkeypatch):
    half_red().save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "pipe")
    status = os.stat(tmp_path / "a.png")
    monkeypatch.setattr(os, "stat", lambda path: status)  # what it was a moment ago
    with pytest.raises(UnusableImage, match="is no regular file"):
        read_image(tmp_path / "pipe", 3)


def test_links_may_be_kept_within_a_folder(tmp_path):
    (tmp_path / "own").mkdir()
    half_red().save(tmp_path / "other.png")
    half_red().save(tmp_path / "own" / "a.png")
    os.symlink("a.png", tmp_path / "own" / "inner.png")
    os.symlink("../other.png", tmp_path / "own" / "outer.png")
    assert read_image(tmp_path / "own" / "inner.png", 3, within=tmp_path / "own").shape == (3, 4, 6)
    assert read_image(tmp_path / "own" / "outer.png", 3).shape == (3, 4, 6)
    with pytest.raises(UnusableImage, match="outer.png is a link that leaves .*own"):
        read_image(tmp_path / "own" / "outer.png", 3, within=tmp_path / "own")


def test_other_channels_are_refused():
    with pytest.raises(UserError, match="channels is 4, but must be 1 or 3"):
        to_array(half_red(), 4)


def test_a_header_alone_costs_no_memory(tmp_path):
    """A WebP of 16383x16383 pixels that ends after its header."""
    size = struct.pack("<I", (16382) | (16382 << 14))
    data = b"VP8L" + struct.pack("<I", 10) + b"\x2f" + size + b"\x00" * 5
    file = io.BytesIO(b"RIFF" + struct.pack("<I", len(data) + 4) + b"WEBP" + data)
    (tmp_path / "large.webp").write_bytes(file.getvalue())
    with pytest.raises(UnusableImage):
        read_image(tmp_path / "large.webp", 3)
