"""Episodes: N-way K-shot tasks, each a pure function of (seed, index) and the list of classes.

The rule, complete enough to rebuild an episode in any language; 1 to 3, words, below and choose, are those of
draws.py:

4. Episode. classes = choose(number of classes, n_way). Within alphabets instead: of the alphabets with at
   least n_way classes, in the order of their first classes, the one numbered below(their number); classes =
   choose(its classes, n_way). The class drawn at place l has the label l. With rotations, then one below(4)
   for each label in order: the quarter turns, counter-clockwise, of all images of this class; a character
   therefore never appears under two rotations. With reflections alone one below(2) instead, with both one
   below(8): 1, or 4 to 7, mirrors the images left to right, before the (number modulo 4) quarter turns of the
   latter. Within alphabets one such number for all labels: the alphabet is turned, and its characters stay as
   alike as they are. Then for each label in order: choose(images of the class, k_shot + k_query); the first
   k_shot are its support images, the others its query images.
5. Order. Both sets are sorted by label, images of a label in the order drawn. With crops or flips they are
   then changed by the rule of augmentation.py. Input value: v / 255 * 2 - 1 in float32.
"""

from __future__ import annotations

from typing import Iterable

import numpy as np
from paddle.io import Dataset

from ..errors import UserError
from .augmentation import change, changes_of
from .draws import SeededTasks
from .images import ImageSet, alphabet_of
from .preprocessing import orient, orientations, to_network_input


class EpisodeBuilder(SeededTasks):
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
            one; within alphabets all classes alike, which makes four alphabets of one.
        reflections: mirror each class of an episode left to right, or not, which makes two classes of one,
            with rotations eight; within alphabets all alike.
        length: number of episodes, `len()` of the data set, and where its indices end. Without one there are
            as many as anybody wants, and `len()` is 2**20, what a `DataLoader` goes through in an epoch.
        within_alphabet: take all classes of an episode from one alphabet, see `alphabet_of`.
        crops: move each image a little, see augmentation.py.
        flips: mirror each image, or not, see augmentation.py.

    Raises:
        UserError: a number that is not positive, more ways than classes, a class with too few images.
    """

    def __init__(
        self,
        images: ImageSet | np.ndarray | list[np.ndarray],
        n_way: int,
        k_shot: int,
        k_query: int,
        seed: int = 0,
        rotations: bool = False,
        length: int | None = None,
        within_alphabet: bool = False,
        crops: bool = False,
        flips: bool = False,
        reflections: bool = False,
    ):
        super().__init__(seed, length, n_way=n_way, k_shot=k_shot, k_query=k_query)
        if isinstance(images, ImageSet):
            self.classes, self.images = images.classes, images.images
        else:
            self.classes, self.images = tuple(f"class {i}" for i in range(len(images))), images
        self.rotations, self.crops, self.flips = bool(rotations), bool(crops), bool(flips)
        self._orientations = orientations(rotations, reflections)
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
                f"n_way is {self.n_way}, but no alphabet has more than "
                f"{max(map(len, by_alphabet.values()))} of these classes: lower it."
            )
        return enough

    def _check_images(self):
        if self.n_way > len(self.images):
            raise UserError(
                f"n_way is {self.n_way}, but there are only {len(self.images)} classes to draw from: "
                "lower it."
            )
        needed, shape = self.k_shot + self.k_query, self.images[0].shape[1:]
        few = [number for number, images in enumerate(self.images) if len(images) < needed]
        for name, images in zip(self.classes, self.images):
            if images.ndim != 4 or images.shape[1:] != shape:
                raise UserError(
                    f"{name} has images of shape {images.shape}, not (images, C, H, W) with (C, H, W) = "
                    f"{shape} as the first class."
                )
            if len(images) < needed:
                others = f" ({len(few)} classes have too few)" if len(few) > 1 else ""
                raise UserError(
                    f"{name} has {len(images)} images, fewer than k_shot + k_query = {needed}{others}: lower "
                    "one of them, or leave such classes out."
                )
        if self.rotations and shape[1] != shape[2]:
            raise UserError(f"Rotations need square images, not {shape[1]}x{shape[2]}.")

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Builds an episode.

        Args:
            index: 0 .. length - 1.

        Returns:
            x_spt float32 (n_way * k_shot, C, H, W), y_spt int64 (n_way * k_shot,), and x_qry, y_qry likewise
            with k_query.

        Raises:
            IndexError: an index below 0 or from the length on.
        """
        sets = []
        for number, orientation, chosen in self.draw(index):
            images = self.images[number][chosen]
            sets.append(orient(images, orientation) if orientation else images)
        changes = changes_of(self.seed, index) if self.crops or self.flips else None
        return (
            *self._finish([images[: self.k_shot] for images in sets], changes),
            *self._finish([images[self.k_shot :] for images in sets], changes),
        )

    def draw(self, index: int) -> list[tuple[int, int, list[int]]]:
        """Which images an episode is made of: for each label its class number, the orientation (see
        `preprocessing.orient`), and the numbers of its images, the support images first. Arguments and errors
        as for an item."""
        draws = self.draws(index)
        if self._alphabets:
            alphabet = self._alphabets[draws.below(len(self._alphabets))]
            classes = [alphabet[place] for place in draws.choose(len(alphabet), self.n_way)]
        else:
            classes = draws.choose(len(self.images), self.n_way)
        if len(self._orientations) == 1:
            turned = [0] * self.n_way
        elif self._alphabets:
            turned = [self._orientations[draws.below(len(self._orientations))]] * self.n_way
        else:
            turned = [self._orientations[draws.below(len(self._orientations))] for _ in classes]
        return [
            (number, orientation, draws.choose(len(self.images[number]), self.k_shot + self.k_query))
            for number, orientation in zip(classes, turned)
        ]

    def _finish(self, images, changes):
        x = np.concatenate(images)
        x = change(x, changes, self.crops, self.flips) if changes else x
        x = to_network_input(x) if x.dtype == np.uint8 else x.astype(np.float32, copy=False)
        return x, np.repeat(np.arange(self.n_way, dtype=np.int64), len(images[0]))


class Alternating(Dataset):
    """The episodes of several builders in turns: episode i is episode i of number i modulo their number."""

    def __init__(self, *builders: EpisodeBuilder):
        super().__init__()
        self.builders = builders

    def __len__(self) -> int:
        return min(map(len, self.builders))

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        return self.builders[index % len(self.builders)][index]


def meta_batch(builder: Dataset, indices: Iterable[int]) -> tuple[np.ndarray, ...]:
    """Builds the episodes of a meta-batch.

    Args:
        builder: an `EpisodeBuilder`, or another data set whose items are tuples of arrays.
        indices: T episode indices.

    Returns:
        The arrays of an item with a leading T: x_spt float32 (T, N, C, H, W), y_spt int64 (T, N), x_qry,
        y_qry.
    """
    return tuple(np.stack(arrays) for arrays in zip(*(builder[index] for index in indices)))
