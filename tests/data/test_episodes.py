"""Episodes: the written rule, rebuilt from scratch; goldens; and what must hold of every episode."""

import hashlib
import time
from itertools import chain

import numpy as np
import paddle
import pytest
from plain_philox import philox

from paddle_maml.data.episodes import Alternating, EpisodeBuilder, meta_batch
from paddle_maml.data.images import ImageSet
from paddle_maml.errors import UserError

CLASSES, DRAWERS = 40, 20
# SHA-256 over the four arrays of episodes 0, 1 and 10**6, of seed 7 and of the largest seed.
GOLDEN = {
    False: "7701a72b0d634c833876c4feb6991ff1e6f81aae395d44219cdd0760e5a40c22",
    True: "4bf073d5895f4a696975bb108add07bb2b515bfc43f9154619e75397f42617c2",
}


def numbered_images(classes=CLASSES, drawers=DRAWERS):
    """4x4 images that tell their class, their drawer and how they are turned."""
    images = np.zeros((classes, drawers, 1, 4, 4), np.uint8)
    images[:, :, 0, 0, 0] = np.arange(classes)[:, None] + 1
    images[:, :, 0, 0, 1] = np.arange(drawers) + 100
    return images


def read(x):
    """From a network input back to (class, drawer, quarter turns)."""
    image = np.rint((x[0] + 1) / 2 * 255).astype(int)
    for turns in range(4):
        upright = np.rot90(image, -turns)
        if upright[0, 1] >= 100:
            return upright[0, 0] - 1, upright[0, 1] - 100, turns
    raise AssertionError("not a numbered image")


# The rule of the module's docstring once more, in plain Python; the words are plain_philox.py's.


def expected_episode(n_way, k_shot, k_query, seed, index, rotations):
    """[(class, drawer, turns), ...] of the support set and of the query set."""
    words = philox(seed, index)

    def choose(n, k):
        pool = list(range(n))
        for i in range(k):
            word = next(words)
            while word >= 2**64 - 2**64 % (n - i):
                word = next(words)
            j = i + word % (n - i)
            pool[i], pool[j] = pool[j], pool[i]
        return pool[:k]

    classes = choose(CLASSES, n_way)
    turns = [next(words) % 4 if rotations else 0 for _ in classes]
    support, query = [], []
    for number, turn in zip(classes, turns):
        chosen = [(number, drawer, turn) for drawer in choose(DRAWERS, k_shot + k_query)]
        support += chosen[:k_shot]
        query += chosen[k_shot:]
    return support, query


@pytest.mark.parametrize("rotations", [False, True])
@pytest.mark.parametrize(
    "n_way, k_shot, k_query, seed, index",
    [(5, 1, 15, 0, 0), (20, 5, 15, 2**64 - 1, 2**31 - 2), (40, 1, 1, 3, 12345), (1, 2, 3, 9, 4)],
)
def test_episode_is_rebuilt_by_the_written_rule(n_way, k_shot, k_query, seed, index, rotations):
    builder = EpisodeBuilder(numbered_images(), n_way, k_shot, k_query, seed, rotations)
    x_spt, y_spt, x_qry, y_qry = builder[index]
    support, query = expected_episode(n_way, k_shot, k_query, seed, index, rotations)
    assert [read(x) for x in x_spt] == support and [read(x) for x in x_qry] == query
    assert y_spt.tolist() == list(chain(*([i] * k_shot for i in range(n_way))))
    assert y_qry.tolist() == list(chain(*([i] * k_query for i in range(n_way))))
    assert x_spt.dtype == x_qry.dtype == np.float32 and y_spt.dtype == y_qry.dtype == np.int64
    assert x_spt.shape == (n_way * k_shot, 1, 4, 4)


@pytest.mark.parametrize("rotations", [False, True])
def test_golden(rotations):
    digest = hashlib.sha256()
    for seed in (7, 2**64 - 1):
        builder = EpisodeBuilder(numbered_images(), 5, 2, 3, seed, rotations)
        for index in (0, 1, 10**6):
            for array in builder[index]:
                digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    assert digest.hexdigest() == GOLDEN[rotations]


@pytest.mark.parametrize("rotations", [False, True])
def test_no_class_twice_and_no_image_shared(rotations):
    builder = EpisodeBuilder(numbered_images(), 20, 5, 15, rotations=rotations)
    for index in range(5):
        x_spt, y_spt, x_qry, y_qry = builder[index]
        seen = [read(x) for x in np.concatenate([x_spt, x_qry])]
        assert len(set(seen)) == 400
        kinds = {}
        for (number, _, turns), label in zip(seen, [*y_spt, *y_qry]):
            kinds.setdefault(label, set()).add((number, turns))
        assert all(len(kind) == 1 for kind in kinds.values())
        assert len({number for kind in kinds.values() for number, _ in kind}) == 20


def test_draws_are_even():
    builder = EpisodeBuilder(numbered_images(), 5, 1, 1, rotations=True)
    seen = np.array([read(x) for index in range(1600) for x in builder[index][0]])
    for column, kinds in enumerate((CLASSES, DRAWERS, 4)):
        counts = np.bincount(seen[:, column], minlength=kinds)
        chi_square = ((counts - 8000 / kinds) ** 2 / (8000 / kinds)).sum()
        assert chi_square < kinds - 1 + 5 * (2 * (kinds - 1)) ** 0.5


def test_order_of_access_and_other_builders_do_not_matter():
    one, other = (EpisodeBuilder(numbered_images(), 5, 1, 2, seed=3) for _ in range(2))
    forward = [one[index] for index in range(4)]
    np.random.seed(0)
    backward = [other[np.int64(index)] for index in reversed(range(4))][::-1]
    for a, b in zip(forward, backward):
        assert all(np.array_equal(x, y) for x, y in zip(a, b))
    assert not np.array_equal(forward[0][0], forward[1][0])
    assert not np.array_equal(forward[0][0], EpisodeBuilder(numbered_images(), 5, 1, 2, seed=4)[0][0])


def test_length_and_indices():
    builder = EpisodeBuilder(numbered_images(), 5, 1, 2, length=3)
    assert len(builder) == 3 and len(list(iter(builder[i] for i in range(3)))) == 3
    for index in (-1, 3):
        with pytest.raises(IndexError):
            builder[index]


def test_meta_batch_stacks_episodes():
    builder = EpisodeBuilder(numbered_images(), 5, 2, 3)
    arrays = meta_batch(builder, [4, 0])
    assert [array.shape for array in arrays] == [(2, 10, 1, 4, 4), (2, 10), (2, 15, 1, 4, 4), (2, 15)]
    for array, first, second in zip(arrays, builder[4], builder[0]):
        assert np.array_equal(array[0], first) and np.array_equal(array[1], second)


def test_works_in_a_paddle_data_loader():
    builder = EpisodeBuilder(numbered_images(), 5, 1, 2, length=4)
    batches = list(paddle.io.DataLoader(builder, batch_size=2, shuffle=False, places=paddle.CPUPlace()))
    assert len(batches) == 2
    for loaded, own in zip(batches[1], meta_batch(builder, [2, 3])):
        assert np.array_equal(loaded.numpy(), own)


def test_without_a_length_a_shuffling_loader_begins():
    builder = EpisodeBuilder(numbered_images(), 5, 1, 2)
    assert len(builder) == 2**20
    loader = paddle.io.DataLoader(builder, batch_size=2, shuffle=True, places=paddle.CPUPlace())
    assert next(iter(loader))[0].shape[0] == 2
    assert np.array_equal(builder[2**31 - 2][0], EpisodeBuilder(numbered_images(), 5, 1, 2)[2**31 - 2][0])
    with pytest.raises(IndexError):
        builder[2**31 - 1]


def test_classes_of_unequal_size():
    images = numbered_images()
    uneven = [images[i, : 4 + i % 3] for i in range(CLASSES)]
    for x in EpisodeBuilder(uneven, 20, 1, 3)[0][2]:
        number, drawer, _ = read(x)
        assert drawer < 4 + number % 3
    with pytest.raises(UserError, match="^class 0 has 4 images, fewer than k_shot [+] k_query = 5"):
        EpisodeBuilder(uneven, 20, 1, 4)


def test_floating_point_images_are_network_input_already():
    images = np.full((6, 3, 1, 4, 4), 0.25, np.float64)
    x = EpisodeBuilder(images, 5, 1, 2)[0][0]
    assert x.dtype == np.float32 and (x == 0.25).all()


@pytest.mark.parametrize("wrong, message", [
    ({"n_way": 0}, "n_way is 0"), ({"k_shot": -1}, "k_shot is -1"), ({"k_query": 0}, "k_query is 0"),
    ({"length": 0}, "length is 0"), ({"n_way": 41}, "n_way is 41.*only 40"),
    ({"k_shot": 18}, "class 0 has 20 images.*= 21"),
    ({"seed": -1}, "seed is -1"), ({"seed": 2**64}, "seed"),
])  # fmt: skip
def test_bad_numbers(wrong, message):
    with pytest.raises(UserError, match=message):
        EpisodeBuilder(**{"images": numbered_images(), "n_way": 5, "k_shot": 1, "k_query": 3, **wrong})


def test_classes_of_one_alphabet():
    classes = tuple(
        f"{name}/character{number:02}"
        for name, size in (("A", 3), ("B", 2), ("C", 5))
        for number in range(size)
    )
    images = ImageSet("drawn", classes, np.zeros((10, 4, 1, 2, 2), np.uint8))
    builder = EpisodeBuilder(images, 3, 1, 2, seed=4, within_alphabet=True)
    seen = []
    for index in range(200):
        numbers = [number for number, _, _ in builder.draw(index)]
        [alphabet] = {classes[number][0] for number in numbers}
        assert len(set(numbers)) == 3
        seen.append(alphabet)
    assert (
        set(seen) == {"A", "C"} and 70 < seen.count("A") < 130
    )  # B is too small; the others are equally likely
    with pytest.raises(UserError, match="no alphabet has more than 5"):
        EpisodeBuilder(images, 6, 1, 2, within_alphabet=True)


def test_an_alphabet_is_turned_as_a_whole():
    classes = tuple(f"{name}/character{number:02}" for name in "AB" for number in range(4))
    images = ImageSet("drawn", classes, np.zeros((8, 4, 1, 2, 2), np.uint8))
    builder = EpisodeBuilder(images, 3, 1, 2, rotations=True, within_alphabet=True)
    seen = [{turns for _, turns, _ in builder.draw(index)} for index in range(200)]
    assert all(len(turns) == 1 for turns in seen)
    assert all(30 < seen.count({turns}) < 70 for turns in range(4))


@pytest.mark.parametrize("rotations, orientations", [(False, {0, 4}), (True, set(range(8)))])
def test_reflections_make_further_classes(rotations, orientations):
    images = np.random.RandomState(0).randint(256, size=(6, 7, 1, 5, 5)).astype(np.uint8)
    options = {"rotations": rotations, "reflections": True, "seed": 3}
    seen = set()
    for index in range(50):
        builder = EpisodeBuilder(images, 4, 1, 2, **options)
        drawn, x_qry = builder.draw(index), builder[index][2]
        for label, (number, orientation, chosen) in enumerate(drawn):
            seen.add(orientation)
            as_drawn = images[number, chosen[1:], 0]
            mirrored = as_drawn[:, :, ::-1] if orientation >= 4 else as_drawn
            expected = np.stack([np.rot90(image, orientation % 4) for image in mirrored])
            np.testing.assert_array_equal(np.round((x_qry[2 * label :][:2, 0] + 1) * 127.5), expected)
    assert seen == orientations


def test_an_alphabet_is_mirrored_as_a_whole():
    classes = tuple(f"{name}/character{number:02}" for name in "AB" for number in range(4))
    images = ImageSet("drawn", classes, np.zeros((8, 4, 1, 2, 2), np.uint8))
    builder = EpisodeBuilder(images, 3, 1, 2, rotations=True, reflections=True, within_alphabet=True)
    seen = [{orientation for _, orientation, _ in builder.draw(index)} for index in range(400)]
    assert all(len(orientations) == 1 for orientations in seen)
    assert all(25 < seen.count({orientation}) < 75 for orientation in range(8))


def test_builders_in_turns():
    alone = [EpisodeBuilder(numbered_images(), 3, 1, 2, seed=seed) for seed in (1, 2)]
    mixed = Alternating(*alone)
    assert len(mixed) == len(alone[0])
    for index in range(4):
        for array, expected in zip(mixed[index], alone[index % 2][index]):
            np.testing.assert_array_equal(array, expected)


def test_draw_names_the_images_of_the_episode():
    images = np.arange(6 * 7, dtype=np.uint8).reshape(6, 7, 1, 1, 1)
    builder = EpisodeBuilder(images, 3, 2, 4, seed=9)
    x_spt, _, x_qry, _ = builder[5]
    drawn = builder.draw(5)
    values = [images[number, chosen].ravel() for number, _, chosen in drawn]
    np.testing.assert_array_equal(
        np.round((x_spt.ravel() + 1) * 127.5), np.concatenate([v[:2] for v in values])
    )
    np.testing.assert_array_equal(
        np.round((x_qry.ravel() + 1) * 127.5), np.concatenate([v[2:] for v in values])
    )


def test_bad_shapes():
    images = numbered_images()
    with pytest.raises(UserError, match="square"):
        EpisodeBuilder(images[..., :3], 5, 1, 1, rotations=True)
    with pytest.raises(UserError, match="class 1 has images of shape"):
        EpisodeBuilder([images[0], images[1][..., :3], *images[2:]], 5, 1, 1)


def test_building_is_fast():
    """A tenth of what it takes here would already hide in a meta-iteration; the bound leaves room for slow
    machines."""
    builder = EpisodeBuilder(np.zeros((100, 20, 1, 28, 28), np.uint8), 20, 5, 15, rotations=True)
    start = time.perf_counter()
    for index in range(50):
        builder[index]
    assert (time.perf_counter() - start) / 50 < 0.02


def test_first_episode_of_real_omniglot(omniglot):
    from paddle_maml.data.splits import split_classes

    test = omniglot.subset(split_classes(omniglot.classes, "competition")["test"])
    digest = hashlib.sha256(
        b"".join(array.tobytes() for array in EpisodeBuilder(test, 5, 1, 15)[0])
    ).hexdigest()
    assert digest == REAL_GOLDEN


REAL_GOLDEN = "ac5b5d8089566585d0773d45f07b35bd0200eba6e8f2f28e2f90e345c629f3e2"
