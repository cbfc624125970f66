"""Folders of images: which classes are found, how they are divided, what is refused, and the cache."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from paddle_maml.data import folder as module
from paddle_maml.data.episodes import EpisodeBuilder
from paddle_maml.data.folder import load_folder
from paddle_maml.data.folder_listing import list_folder
from paddle_maml.data.image_cache import HEAD
from paddle_maml.data.splits import split_by_seed
from paddle_maml.errors import UserError


def draw(path, value=0, size=(9, 7), mode="L"):
    """An image of one value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value, 0, 0)).save(path)


@pytest.fixture
def pictures(tmp_path):
    """Ten classes, c0 to c9, of 3 or 4 images whose values tell them: 20 * class + number."""
    root = tmp_path / "pictures"
    for number in range(10):
        for image in range(3 + number % 2):
            draw(root / f"c{number}" / f"{image}.png", 20 * number + image)
    return root


@pytest.fixture
def load(tmp_path):
    def call(path, image_size=16, channels=1, **options):
        return load_folder(path, image_size, channels, cache_dir=tmp_path / "cache", **options)

    return call


def test_classes_images_and_their_values(pictures, load):
    folder = load(pictures, name="mine")
    found = {}
    for part in ("train", "val", "test"):
        images = folder.parts[part]
        assert images.name == "mine" and images.input_shape == (1, 16, 16)
        found.update(zip(images.classes, images.images))
    assert sorted(found) == [f"c{number}" for number in range(10)]
    for name, images in found.items():
        number = int(name[1])
        assert images.dtype == np.uint8 and (images == images[:, :1, :1, :1]).all()
        assert images[:, 0, 0, 0].tolist() == [20 * number + image for image in range(3 + number % 2)]
    x = EpisodeBuilder(folder.parts["train"], 5, 1, 2, seed=0)[0][0]
    values = (x[:, 0, 0, 0] + 1) / 2 * 255
    np.testing.assert_allclose(values, np.round(values), atol=1e-4)  # as they are, none inverted


def test_colours(tmp_path, load):
    for name in "abc":
        draw(tmp_path / "p" / name / "1.png", 90, mode="RGB")
        draw(tmp_path / "p" / name / "2.bmp", 90)
    both = {channels: load(tmp_path / "p", channels=channels) for channels in (1, 3)}
    red, grey = both[3].parts["train"].images[0][:, :, 0, 0].tolist()
    assert red == [90, 0, 0] and grey == [90, 90, 90]
    assert both[1].parts["train"].images[0][:, 0, 0, 0].tolist() == [27, 90]
    assert "3 in colour" in both[1].summary and "in_channels 3 keeps the colours" in both[1].summary
    assert "keeps" not in both[3].summary


def test_two_levels_as_omniglots_alphabets(tmp_path):
    for place in ("Greek/alpha", "Greek/beta", "Latin/a", "digits"):
        draw(tmp_path / place / "1.png")
    [(part, classes)] = list_folder(tmp_path).parts.items()
    assert part == "" and list(classes) == ["Greek/alpha", "Greek/beta", "Latin/a", "digits"]
    assert classes["Greek/beta"] == ["Greek/beta/1.png"]


def test_the_split_is_the_same_everywhere_and_each_seed_has_its_own():
    names = [f"class {number}" for number in range(25)]
    split = split_by_seed(names[::-1], 0)
    assert split == split_by_seed(names, 0) != split_by_seed(names, 1)
    assert [len(split[part]) for part in ("train", "val", "test")] == [15, 5, 5]
    assert sorted(name for part in split.values() for name in part) == sorted(names)
    # By the plain reading of the rule, with NumPy's words alone.
    words = np.random.Philox(key=np.array([0, 2**64 - 1], np.uint64)).random_raw(25)
    pool = sorted(names)
    for place, word in enumerate(words):  # no word is as large as to be passed over
        other = place + int(word) % (25 - place)
        pool[place], pool[other] = pool[other], pool[place]
    assert split["test"] == sorted(pool[:5]) and split["val"] == sorted(pool[5:10])


def test_own_parts(tmp_path, load):
    for place in ("train/a/x", "train/b", "val/c", "test/d/y"):
        draw(tmp_path / "p" / place / "1.png")
    draw(tmp_path / "p" / "drafts" / "1.png")
    folder = load(tmp_path / "p", split_seed=5)
    assert {part: images.classes for part, images in folder.parts.items()} == {
        "train": ("a/x", "b"),
        "val": ("c",),
        "test": ("d/y",),
    }
    assert folder.rule == "folders"
    assert "2 for train, 1 for val, 1 for test" in folder.summary and "drafts" in folder.summary
    draw(tmp_path / "p" / "test" / "b" / "1.png")
    with pytest.raises(UserError, match="b is a class in train/ and in test/ of .*p"):
        load(tmp_path / "p")
    shutil.rmtree(tmp_path / "p" / "val")
    with pytest.raises(UserError, match="has train/ and test/ but no val/"):
        load(tmp_path / "p")


def test_summary_tells_what_there_is_and_what_was_skipped(pictures, load):
    draw(pictures / "c1" / "large.jpg", 5, (400, 300), "RGB")
    draw(pictures / "stray.png")
    draw(pictures / "c2" / "sub" / "deep" / "1.png")
    (pictures / "empty").mkdir()
    (pictures / "c3" / "notes.txt").write_text("x")
    (pictures / ".git").mkdir()
    os.mkfifo(pictures / "c3" / "pipe")  # no name of an image: it is not even looked at
    assert load(pictures).summary.splitlines() == [
        f"{pictures}: 10 classes of 3 to 5 images, 36 in all, from 9x7 to 400x300 pixels, 1 in colour.",
        "Resized to 16x16 pixels, grey; 35 are smaller and were enlarged; in_channels 3 keeps the colours.",
        "Classes divided at random, with seed 0: 6 for train, 2 for val, 2 for test.",
        "Skipped: folders below those of classes: c2/sub/deep; folders without images: empty; hidden: .git; "
        "not in a class folder: stray.png; not named .png, .jpg, .jpeg, .bmp or .webp: c3/notes.txt "
        "and 1 more.",
    ]


# ---- what is refused


def spoil(root, what):
    """Put something into a folder of images that cannot be used."""
    if what == "damaged":
        (root / "c1" / "bad.png").write_bytes(b"\x89PNG")
    elif what == "outside":
        draw(root.parent / "secret.png")
        os.symlink(root.parent / "secret.png", root / "c1" / "bad.png")
    elif what == "folder outside":
        (root.parent / "elsewhere").mkdir()
        os.symlink(root.parent / "elsewhere", root / "bad.png")
    elif what == "fifo":
        os.mkfifo(root / "c1" / "bad.png")
    elif what == "device":
        os.symlink("/dev/zero", root / "c1" / "bad.png")
    elif what == "nothing":
        os.symlink("none", root / "c1" / "bad.png")
    elif what == "loop":
        os.symlink("bad.png", root / "c1" / "bad.png")


@pytest.mark.parametrize(
    "what, why",
    [
        ("damaged", "c1/bad.png is (damaged|no PNG, JPEG, BMP or WebP image)"),
        ("outside", "c1/bad.png is a link that leaves the folder"),
        ("folder outside", "bad.png is a link that leaves the folder"),
        ("fifo", "c1/bad.png is no regular file"),
        ("device", "c1/bad.png is a link that leaves the folder"),
        ("nothing", "c1/bad.png cannot be read .No such file"),
        ("loop", "c1/bad.png cannot be read"),
    ],
)
def test_what_cannot_be_used_is_named(pictures, load, what, why):
    spoil(pictures, what)
    with pytest.raises(UserError, match=f"1 of the 36 images in .*pictures cannot be used.*: {why}"):
        load(pictures)


def test_many_unusable_files_are_counted(pictures, load):
    for number in range(7):
        (pictures / f"c{number}" / "bad.png").write_bytes(b"x")
    with pytest.raises(UserError, match="7 of the 42 .*c0/bad.png.*c1/bad.png.*c2/bad.png.*; and 4 more.$"):
        load(pictures)


def test_a_folder_that_is_none_or_holds_no_classes(tmp_path, load):
    with pytest.raises(UserError, match="There is no folder .*nowhere"):
        load(tmp_path / "nowhere")
    draw(tmp_path / "p" / "1.png")
    draw(tmp_path / "p" / "a" / "b" / "c" / "1.png")
    with pytest.raises(UserError, match="has no class folders with images .*below.*a/b/c.*1.png"):
        load(tmp_path / "p")
    draw(tmp_path / "q" / "a" / "1.png")
    draw(tmp_path / "q" / "a" / "b" / "1.png")
    with pytest.raises(UserError, match="a holds both images and a folder of images, a/b"):
        load(tmp_path / "q")


def test_a_class_whose_name_has_no_letters_is_refused(tmp_path, load):
    folder = os.fsencode(tmp_path) + b"/p/\xff"
    os.makedirs(folder)
    Image.new("L", (4, 4)).save(os.fsdecode(folder) + "/1.png")
    with pytest.raises(UserError, match=r"\\xff has a name that is not UTF-8"):
        load(tmp_path / "p")


def test_composed_and_decomposed_names_are_one_class_name(tmp_path):
    draw(tmp_path / "p" / "e\u0301" / "1.png")
    assert list(list_folder(tmp_path / "p").parts[""]) == ["\u00e9"]
    draw(tmp_path / "p" / "\u00e9" / "1.png")
    with pytest.raises(UserError, match="another class has too"):
        list_folder(tmp_path / "p")


# ---- the cache


@pytest.fixture
def decoded(monkeypatch):
    """Counts the images that are decoded."""
    opened = []
    original = module.open_image
    monkeypatch.setattr(module, "open_image", lambda *a, **b: opened.append(a) or original(*a, **b))
    return opened


def same(one, other):
    return all(
        np.array_equal(a, b)
        for part in one.parts
        for a, b in zip(one.parts[part].images, other.parts[part].images)
    )


def test_images_are_decoded_once(pictures, load, decoded):
    first = load(pictures)
    assert len(decoded) == 35
    again = load(pictures)
    assert len(decoded) == 35 and same(first, again) and again.summary == first.summary
    load(pictures, split_seed=9)  # the same images, divided in another way
    assert len(decoded) == 35
    load(pictures, image_size=20)
    assert len(decoded) == 70


@pytest.mark.parametrize("change", ["content", "time", "added", "removed", "renamed"])
def test_another_folder_is_decoded_anew(pictures, load, decoded, change):
    load(pictures)
    file = pictures / "c4" / "1.png"
    if change == "content":
        draw(file, 255)
    elif change == "time":
        os.utime(file, ns=(0, 10**18))
    elif change == "added":
        draw(pictures / "c4" / "7.png", 3)
    elif change == "removed":
        file.unlink()
    else:
        file.rename(file.with_name("x.png"))
    before = len(decoded)
    load(pictures)
    assert len(decoded) >= before + 34


@pytest.mark.parametrize("how", ["flipped", "short", "long", "other key", "other facts", "no head", "fifo"])
def test_a_damaged_cache_is_as_good_as_none(pictures, load, decoded, tmp_path, how):
    first = load(pictures)
    [file] = (tmp_path / "cache").iterdir()
    data = bytearray(file.read_bytes())
    if how == "flipped":
        data[-1] ^= 1
    elif how == "short":
        data = data[:-1]
    elif how == "long":
        data += b"x"
    elif how == "other key":
        at = data.index(b'"key": "') + 8
        data[at] = ord("0") if data[at] != ord("0") else ord("1")
    elif how == "other facts":
        head = bytes(data[:HEAD]).rstrip()
        assert b'"coloured": 0' in head
        data[:HEAD] = head.replace(b'"coloured": 0', b'"coloured": []').ljust(HEAD)
    elif how == "no head":
        data[:HEAD] = b"[" * HEAD
    file.write_bytes(data)
    if how == "fifo":
        file.unlink()
        os.mkfifo(file)
    again = load(pictures)
    assert len(decoded) == 70 and same(first, again)
    assert same(first, load(pictures)) and len(decoded) == 70  # it was mended


def test_without_a_place_for_the_cache(pictures, load, tmp_path):
    (tmp_path / "cache").write_text("in the way")
    with pytest.warns(UserWarning, match="decoded anew each time"):
        folder = load(pictures)
    assert len(folder.parts["train"].classes) == 6


def test_what_is_mapped_cannot_be_written_to(pictures, load):
    load(pictures)
    with pytest.raises(ValueError, match="read-only"):
        load(pictures).parts["train"].images[0][:] = 0


def test_a_copy_has_the_same_digest_and_another_folder_has_not(pictures, load, tmp_path):
    first = load(pictures).parts["train"].listing_sha256
    shutil.copytree(pictures, tmp_path / "copy", copy_function=shutil.copyfile)
    assert load(tmp_path / "copy").parts["test"].listing_sha256 == first
    draw(tmp_path / "copy" / "c1" / "9.png")
    assert load(tmp_path / "copy").parts["test"].listing_sha256 != first
