"""Images by class: parts of a set, and sets made of (image, label)."""

import numpy as np
import paddle
import pytest
from mnist_files import write_digits
from PIL import Image

from paddle_maml.data.episodes import EpisodeBuilder
from paddle_maml.data.images import ImageSet
from paddle_maml.errors import UserError


def images_of(classes):
    """1x1 images that tell their class, from 1 on."""
    return np.repeat(np.arange(1, classes + 1, dtype=np.uint8), 20).reshape(classes, 20, 1, 1, 1)


def test_subset():
    images = ImageSet("synthetic", ("a/1", "a/2", "b/1"), images_of(3))
    subset = images.subset(["b/1", "a/1"])
    assert subset.name == "synthetic" and subset.classes == ("b/1", "a/1")
    assert subset.images[:, 0, 0, 0, 0].tolist() == [3, 1]
    assert ImageSet("x", images.classes, list(images.images)).subset(["a/2"]).images[0][0, 0, 0, 0] == 2
    with pytest.raises(UserError, match="1 of the 2.*c/1"):
        images.subset(["a/1", "c/1"])


# ---------------------------------------------------------------------------------- sets of (image, label)


@pytest.fixture(scope="module")
def mnist(tmp_path_factory):
    """Paddle's MNIST over small files, and the arrays that these were written from."""
    image_path, label_path, images, labels = write_digits(tmp_path_factory.mktemp("mnist"))
    return paddle.vision.datasets.MNIST(image_path=image_path, label_path=label_path), images, labels


def test_mnist(mnist):
    dataset, images, labels = mnist
    digits = ImageSet.from_labelled(dataset, name="mnist")
    assert digits.name == "mnist" and digits.classes == tuple("0123456789")
    assert digits.images.shape == (10, 20, 1, 28, 28) and digits.images.dtype == np.uint8
    for label in range(10):
        np.testing.assert_array_equal(digits.images[label, :, 0], images[labels == label])


def test_white_on_black_becomes_black_on_white_on_request_alone(mnist):
    dataset, _, _ = mnist
    kept, inverted = (ImageSet.from_labelled(dataset, invert=invert).images for invert in (False, True))
    assert (kept[..., 0, 0] == 0).all() and (inverted[..., 0, 0] == 255).all()
    np.testing.assert_array_equal(inverted, 255 - kept)


def test_tasks_of_held_back_digits(mnist):
    dataset, images, labels = mnist
    held_back = ImageSet.from_labelled(dataset, classes=[9, 7, 8])
    assert held_back.classes == ("7", "8", "9")
    assert held_back.subset(["9"]).classes == ("9",)
    known = {image.tobytes() for image in images[labels >= 7]}
    for index in range(5):
        for x in EpisodeBuilder(held_back, 3, 1, 2)[index][0]:
            assert np.rint((x + 1) * 127.5).astype(np.uint8).tobytes() in known


def test_tasks_of_permuted_labels(mnist):
    """With as many ways as classes every task has all of them, under other labels."""
    dataset, _, _ = mnist
    builder = EpisodeBuilder(ImageSet.from_labelled(dataset), 10, 1, 1)
    orders = [[number for number, _, _ in builder.draw(index)] for index in range(50)]
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert len({tuple(order) for order in orders}) == 50
    assert len({order[0] for order in orders}) == 10


GREY = np.arange(30, dtype=np.uint8).reshape(5, 6)
COLOUR = np.stack([GREY, GREY + 30, GREY + 60])


@pytest.mark.parametrize(
    "image, expected",
    [
        (GREY, GREY[None]),
        (GREY[None], GREY[None]),
        (GREY[:, :, None], GREY[None]),
        (COLOUR, COLOUR),
        (COLOUR.transpose(1, 2, 0), COLOUR),
        (Image.fromarray(GREY), GREY[None]),
        (Image.fromarray(COLOUR.transpose(1, 2, 0)), COLOUR),
        (Image.fromarray(GREY > 9), 255 * (GREY > 9)[None].astype(np.uint8)),
        (paddle.to_tensor(COLOUR), COLOUR),
        (GREY / 30, (GREY[None] / 30).astype(np.float32)),
        (paddle.to_tensor(COLOUR / 90), (COLOUR / 90).astype(np.float32)),
    ],
)
def test_forms_of_an_image(image, expected):
    images = ImageSet.from_labelled([(image, 0), (image, 1)]).images
    assert images.shape == (2, 1, *expected.shape) and images.dtype == expected.dtype
    np.testing.assert_array_equal(images[1, 0], expected)


def test_an_image_with_a_palette_is_read_in_colour():
    colours = Image.new("RGB", (7, 6), (200, 10, 30))
    [[image]] = ImageSet.from_labelled([(colours.convert("P"), 0)]).images
    assert image.shape == (3, 6, 7) and image[0].min() > 150 and image[1:].max() < 80


@pytest.mark.parametrize(
    "label",
    [3, np.int64(3), np.array(3), np.array([3]), np.array([[3]], np.uint8), paddle.to_tensor([3]), 3.0],
)
def test_forms_of_a_label(label):
    assert ImageSet.from_labelled([(GREY, label), (GREY, 12)]).classes == ("3", "12")


def test_classes_of_unequal_size_are_a_list():
    images = ImageSet.from_labelled([(GREY, 10), (GREY + 1, 2), (GREY + 2, 10)])
    assert images.classes == ("2", "10") and isinstance(images.images, list)
    assert [array.shape for array in images.images] == [(1, 1, 5, 6), (2, 1, 5, 6)]
    assert images.images[1][:, 0, 0, 0].tolist() == [0, 2]


def test_sources_of_pairs():
    class Endless(paddle.io.Dataset):  # its length alone says where it ends
        def __getitem__(self, number):
            return GREY, number % 2

        def __len__(self):
            return 6

    class Stream(paddle.io.IterableDataset):
        def __iter__(self):
            return iter([(GREY, number % 2) for number in range(6)])

    pairs = [[GREY, number % 2] for number in range(6)]
    tensors = paddle.io.TensorDataset(
        [paddle.to_tensor(np.stack([GREY] * 6)), paddle.to_tensor([0, 1, 0, 1, 0, 1])]
    )
    for dataset in (Endless(), Stream(), pairs, iter(pairs), tensors):
        assert ImageSet.from_labelled(dataset).images.shape == (2, 3, 1, 5, 6)


@pytest.mark.parametrize(
    "dataset, options, message",
    [
        ([], {}, "^mine is empty, but must have"),
        ([(GREY, 0)], {"classes": []}, "^mine is empty"),
        ([(GREY, 0)], {"classes": [0, 4]}, "^mine has no images with the label 4"),
        ([(GREY, 0)], {"classes": ["a"]}, "^classes of mine is 'a', but must be one whole number"),
        ([(GREY, 0), (GREY[:4], 0)], {}, r"^item 1 of mine is an image of shape \(1, 4, 6\) .* \(1, 5, 6\)"),
        ([(GREY, 0), (GREY / 30, 0)], {}, "^item 1 of mine is .* type float32, unlike .* uint8"),
        ([(GREY, 0.5)], {}, "^the label of item 0 of mine is 0.5, but must be one whole number"),
        ([(GREY, float("nan"))], {}, "is nan, but must be"),
        ([(GREY, float("inf"))], {}, "is inf, but must be"),
        ([(GREY, "seven")], {}, "is 'seven', but must be"),
        ([(GREY, None)], {}, "is None, but must be"),
        ([(GREY, np.eye(10)[3])], {}, r"is an array of float64 of shape \(10,\), but must be one"),
        ([(None, 0)], {}, "^item 0 of mine has an image of type NoneType"),
        ([("a.png", 0)], {}, "has an image of type str"),
        ([(GREY.astype(np.int64), 0)], {}, "has an image of type ndarray with int64"),
        ([(np.zeros(784, np.uint8), 0)], {}, r"has an image of shape \(784,\)"),
        ([(np.zeros((3, 28, 3), np.uint8), 0)], {}, r"has an image of shape \(3, 28, 3\)"),
        ([(np.zeros((9, 28, 9), np.uint8), 0)], {}, r"has an image of shape \(9, 28, 9\)"),
        ([(np.zeros((0, 28), np.uint8), 0)], {}, "has no pixels"),
        ([GREY], {}, r"^item 0 of mine is a ndarray, but must be a pair \(image, label\)"),
        ([(GREY, 0, 1)], {}, "^item 0 of mine is a tuple, but must be a pair"),
        ([(GREY / 30, 0)], {"invert": True}, "^invert is for images of uint8, but those of mine are float32"),
    ],
)
def test_bad_input_is_one_sentence(dataset, options, message):
    with pytest.raises(UserError, match=message) as caught:
        ImageSet.from_labelled(dataset, name="mine", **options)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)
