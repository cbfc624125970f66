"""Episodes: N-way K-shot tasks, each a pure function of (seed, index) and the list of classes.

The rule, complete enough to rebuild an episode in any language (n % m is the remainder, all integers are
exact):

1. Words. Philox4x64-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") with key (seed,
index), both
   unsigned 64-bit. Block b = 1, 2, 3, ... is the cipher of the counter (b, 0, 0, 0); its four 64-bit words
   are used in order 0, 1, 2, 3, and the blocks in order of b. This is `numpy.random.Philox(key=[seed,
   index]).random_raw`, whose stream NumPy guarantees, unlike that of `numpy.random.Generator`.
2. below(n). Take the next word r; while r >= 2**64 - 2**64 % n take the next one; the result is r % n. Always
takes a word,
   also when n is 1.
3. choose(n, k). pool = [0, ..., n - 1]; for i = 0 .. k - 1: j = i + below(n - i), swap pool[i] and pool[j].
The result is
   pool[0 .. k - 1] in this order.
4. Episode. classes = choose(number of classes, n_way). Within alphabets instead: of the alphabets with at
least n_way classes, in
   the order of their first classes, the one numbered below(their number); classes = choose(its classes,
   n_way). The class drawn at place l has the label l. With rotations, then one below(4) for each label in
   order: the quarter turns, counter-clockwise, of all images of this class; a character therefore never
       appears under two rotations. Then for each label in order: choose(images
   of the class, k_shot + k_query); the first k_shot are its support images, the others its query images.
5. Order. Both sets are sorted by label, images of a label in the order drawn. Input value: v / 255 * 2 - 1 in
float32.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass

import numpy as np
import paddle

from ..errors import UserError
from .preprocessing import rotate, to_network_input

MAX_EPISODES = 2**31 - 1


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images by class.

    Args:
        name: "omniglot" or "synthetic"; reports say which.
        classes: names, "Alphabet/characterNN".
        images: uint8 (classes, drawers, C, H, W), distorted copies counted as drawers; or a list of (drawers,
            C, H, W) where classes differ in size.
    """

    name: str
    classes: tuple[str, ...]
    images: np.ndarray | list

    def subset(self, classes):
        """The same set with only these classes, in this order. Raises UserError if one is not there."""
        place = {name: i for i, name in enumerate(self.classes)}
        missing = [name for name in classes if name not in place]
        if missing:
            raise UserError(
                f"{self.name} lacks {len(missing)} of the {len(classes)} classes asked for, the first is {missing[0]}."
            )
        chosen = [place[name] for name in classes]
        images = (
            self.images[chosen] if isinstance(self.images, np.ndarray) else [self.images[i] for i in chosen]
        )
        return ImageSet(self.name, tuple(classes), images)


def check_seed(seed):
    """Raises UserError for a seed that is not in 0 .. 2**64 - 1."""
    if not 0 <= operator.index(seed) < 2**64:
        raise UserError(f"seed is {seed}, but must be between 0 and 2**64 - 1.")


def philox_words(seed, index):
    """The endless stream of 64-bit words of a (seed, index) pair (rule 1 above)."""
    philox = np.random.Philox(key=np.array([seed, index], dtype=np.uint64))
    while True:
        yield from philox.random_raw(128).tolist()


class Draws:
    """Draws from an iterator of 64-bit words (rules 2 and 3 above)."""

    def __init__(self, words):
        self._words = words

    def below(self, n):
        """A number in 0 .. n - 1, every one equally likely."""
        word = next(self._words)
        limit = 2**64 - 2**64 % n
        while word >= limit:
            word = next(self._words)
        return word % n

    def choose(self, n, k):
        """k different numbers of 0 .. n - 1, in random order (partial Fisher-Yates shuffle)."""
        pool = list(range(n))
        for i in range(k):
            j = i + self.below(n - i)
            pool[i], pool[j] = pool[j], pool[i]
        return pool[:k]


def alphabet_of(class_name):
    """The part of a class's name before "/"."""
    return class_name.split("/")[0]


class EpisodeBuilder(paddle.io.Dataset):
    """Episode i of a seed: the same on every machine, in every process and order of access (the rule stands
    above).

    Args:
        images: an `ImageSet`, or its array(s). uint8 is scaled to [-1, 1]; floating point is taken as network
            input already.
        n_way: classes in an episode.
        k_shot: support images of each class.
        k_query: query images of each class; support and query share none.
        seed: 0 .. 2**64 - 1.
        rotations: turn each class of an episode by 0, 90, 180 or 270 degrees, which makes four classes of
            one.
        length: number of episodes, `len()` of the data set.
        within_alphabet: take all classes of an episode from one alphabet, see `alphabet_of`.

    Raises:
        UserError: a number that is not positive, more ways than classes, a class with too few images.
    """

    def __init__(
        self,
        images,
        n_way,
        k_shot,
        k_query,
        seed=0,
        rotations=False,
        length=MAX_EPISODES,
        within_alphabet=False,
    ):
        super().__init__()
        for name, value in (("n_way", n_way), ("k_shot", k_shot), ("k_query", k_query), ("length", length)):
            if operator.index(value) < 1:
                raise UserError(f"{name} is {value}, but must be at least 1.")
        check_seed(seed)
        if isinstance(images, ImageSet):
            self.classes, self.images = images.classes, images.images
        else:
            self.classes, self.images = tuple(f"class {i}" for i in range(len(images))), images
        self.n_way, self.k_shot, self.k_query = int(n_way), int(k_shot), int(k_query)
        self.seed, self.rotations, self._length = int(seed), bool(rotations), int(length)
        self._check_images()
        self._alphabets = self._group_by_alphabet() if within_alphabet else None

    def _group_by_alphabet(self):
        """Lists of class numbers, one for each alphabet with enough of them."""
        by_alphabet = {}
        for number, name in enumerate(self.classes):
            by_alphabet.setdefault(alphabet_of(name), []).append(number)
        enough = [numbers for numbers in by_alphabet.values() if len(numbers) >= self.n_way]
        if not enough:
            raise UserError(
                f"n_way is {self.n_way}, but no alphabet has more than {max(map(len, by_alphabet.values()))} of these classes: lower it."
            )
        return enough

    def _check_images(self):
        if self.n_way > len(self.images):
            raise UserError(
                f"n_way is {self.n_way}, but there are only {len(self.images)} classes to draw from: lower it."
            )
        needed, shape = self.k_shot + self.k_query, self.images[0].shape[1:]
        for name, images in zip(self.classes, self.images):
            if images.ndim != 4 or images.shape[1:] != shape:
                raise UserError(
                    f"{name} has images of shape {images.shape}, not (images, C, H, W) with (C, H, W) = {shape} as the first class."
                )
            if len(images) < needed:
                raise UserError(
                    f"{name} has {len(images)} images, fewer than k_shot + k_query = {needed}: lower one of them."
                )
        if self.rotations and shape[1] != shape[2]:
            raise UserError(f"Rotations need square images, not {shape[1]}x{shape[2]}.")

    def __len__(self):
        return self._length

    def __getitem__(self, index):
        """Builds an episode.

        Args:
            index: 0 .. len - 1.

        Returns:
            x_spt float32 (n_way * k_shot, C, H, W), y_spt int64 (n_way * k_shot,), and x_qry, y_qry likewise
            with k_query.

        Raises:
            IndexError: an index below 0 or from the length on.
        """
        sets = []
        for number, quarter_turns, chosen in self.draw(index):
            images = self.images[number][chosen]
            sets.append(rotate(images, quarter_turns) if quarter_turns else images)
        return (
            *self._finish([images[: self.k_shot] for images in sets]),
            *self._finish([images[self.k_shot :] for images in sets]),
        )

    def draw(self, index):
        """Which images an episode is made of: for each label its class number, the quarter turns, and the
        numbers of its images, the support images first. Arguments and errors as for an item."""
        index = operator.index(index)
        if not 0 <= index < self._length:
            raise IndexError(f"episode {index} of {self._length}")
        draws = Draws(philox_words(self.seed, index))
        if self._alphabets:
            alphabet = self._alphabets[draws.below(len(self._alphabets))]
            classes = [alphabet[place] for place in draws.choose(len(alphabet), self.n_way)]
        else:
            classes = draws.choose(len(self.images), self.n_way)
        turns = [draws.below(4) if self.rotations else 0 for _ in classes]
        return [
            (number, quarter_turns, draws.choose(len(self.images[number]), self.k_shot + self.k_query))
            for number, quarter_turns in zip(classes, turns)
        ]

    def _finish(self, images):
        x = np.concatenate(images)
        x = to_network_input(x) if x.dtype == np.uint8 else x.astype(np.float32, copy=False)
        return x, np.repeat(np.arange(self.n_way, dtype=np.int64), len(images[0]))


def meta_batch(builder, indices):
    """Builds the episodes of a meta-batch.

    Args:
        builder: an `EpisodeBuilder`.
        indices: T episode indices.

    Returns:
        x_spt float32 (T, N, C, H, W), y_spt int64 (T, N), x_qry, y_qry.
    """
    return tuple(np.stack(arrays) for arrays in zip(*(builder[index] for index in indices)))
