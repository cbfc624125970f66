"""Batches of labelled classes: the written rule, rebuilt from scratch; a golden; what is refused."""

import hashlib

import numpy as np
import pytest
from plain_philox import philox

from paddle_maml.data.batches import BatchBuilder, labels_of
from paddle_maml.data.images import ImageSet
from paddle_maml.errors import UserError

CLASSES, DRAWERS = 7, 5
# SHA-256 over the arrays of batches 0, 1 and 10**6, of seed 7 and of the largest seed.
GOLDEN = {
    False: "aad92beebd53bdcd0ca96b8ad47119f2e27857dc857360ed7e279920119c6e92",
    True: "9f1f8b105c27dda272a61034745e349dea1f553cdbff1e8d98656e1cafdff384",
}


def numbered(classes=CLASSES, drawers=DRAWERS):
    """4x4 images that tell their class, their drawer and how they are turned."""
    images = np.zeros((classes, drawers, 1, 4, 4), np.uint8)
    images[:, :, 0, 0, 0] = np.arange(classes)[:, None] + 1
    images[:, :, 0, 0, 1] = np.arange(drawers) + 100
    return ImageSet("numbered", tuple(map(str, range(classes))), images)


def expected(size, seed, index, rotations):
    """The rule of the module's docstring once more: [(class, drawer, turns), ...]."""
    words = philox(seed, index)

    def below(n):
        word = next(words)
        while word >= 2**64 - 2**64 % n:
            word = next(words)
        return word % n

    drawn = [(below(CLASSES * (4 if rotations else 1)), below(DRAWERS)) for _ in range(size)]
    return [(label % CLASSES, drawer, label // CLASSES) for label, drawer in drawn]


@pytest.mark.parametrize("rotations", [False, True])
def test_a_batch_is_what_the_rule_says(rotations):
    images = numbered()
    builder = BatchBuilder(images, 9, seed=3, rotations=rotations)
    for index in (0, 5):
        x, y = builder[index]
        assert x.shape == (9, 1, 4, 4) and x.dtype == np.float32 and y.dtype == np.int64
        for image, label, (number, drawer, turns) in zip(x, y, expected(9, 3, index, rotations)):
            assert label == turns * CLASSES + number
            turned = np.rot90(images.images[number, drawer], turns, axes=(-2, -1))
            np.testing.assert_allclose(image, turned / 255 * 2 - 1, atol=1e-6)


@pytest.mark.parametrize("rotations", [False, True])
def test_golden(rotations):
    digest = hashlib.sha256()
    for seed in (7, 2**64 - 1):
        builder = BatchBuilder(numbered(), 6, seed=seed, rotations=rotations)
        for index in (0, 1, 10**6):
            for array in builder[index]:
                digest.update(np.ascontiguousarray(array).tobytes())
    assert digest.hexdigest() == GOLDEN[rotations]


def test_crops_and_flips_change_the_images_of_the_same_batch():
    random = np.random.RandomState(0)
    images = ImageSet("own", ("a", "b"), random.randint(256, size=[2, 3, 1, 10, 10]).astype(np.uint8))
    x, y = BatchBuilder(images, 8, seed=1)[4]
    changed, labels = BatchBuilder(images, 8, seed=1, crops=True, flips=True)[4]
    assert (
        (labels == y).all()
        and (changed != x).any()
        and (changed == BatchBuilder(images, 8, seed=1, crops=True, flips=True)[4][0]).all()
    )
    flipped = BatchBuilder(images, 8, seed=1, flips=True)[4][0]
    mirrored = [(one == other[..., ::-1]).all() for one, other in zip(flipped, x)]
    assert 0 < sum(mirrored) < 8
    assert all(there or (one == other).all() for there, one, other in zip(mirrored, flipped, x))


def test_every_label_comes():
    builder = BatchBuilder(numbered(), 400, rotations=True)
    assert sorted(set(builder[0][1])) == list(range(builder.labels)) == list(range(4 * CLASSES))
    assert labels_of(numbered(), False) == CLASSES


def test_a_mirrored_class_has_a_label_of_its_own():
    images = numbered()
    for rotations, count in ((False, 2), (True, 8)):
        builder = BatchBuilder(images, 400, rotations=rotations, reflections=True)
        assert builder.labels == labels_of(images, rotations, True) == count * CLASSES
        x, y = builder[0]
        assert sorted(set(y)) == list(range(builder.labels))
        mirrored = x[y == (count // 2) * CLASSES + 2][0]
        np.testing.assert_allclose(mirrored[0, 0, 3], 3 / 255 * 2 - 1, atol=1e-6)  # class 2, at the right


def test_classes_of_unequal_size_and_floating_point():
    images = ImageSet("own", ("a", "b"), [np.full((n, 1, 2, 3), n, np.float64) for n in (1, 4)])
    x, y = BatchBuilder(images, 20)[0]
    assert x.dtype == np.float32 and set(y) == {0, 1}
    assert (x[:, 0, 0, 0] == np.where(y == 0, 1, 4)).all()


@pytest.mark.parametrize(
    "images, options, sentence",
    [
        (numbered(), {"batch_size": 0}, "batch_size is 0, but must be at least 1"),
        (numbered(), {"seed": -1}, "seed is -1"),
        (ImageSet("own", ("a",), [np.zeros((0, 1, 2, 2))]), {}, "a has no images"),
        (ImageSet("own", ("a",), [np.zeros((1, 1, 2, 3))]), {"rotations": True}, "need square images"),
    ],
)
def test_refusals(images, options, sentence):
    with pytest.raises(UserError, match=sentence):
        BatchBuilder(images, **{"batch_size": 4, **options})
