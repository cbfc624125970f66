"""Batches of labelled images for a classifier over all classes, each a pure function of (seed, index) and the
list of classes.

The rule, complete enough to rebuild a batch in any language; words and below are those of draws.py: for each
of the batch's images in order, label = below(number of labels), then image = below(images of its class).
Without rotations there is a label for each class. With rotations there are four: label l is of the class
numbered l % classes, turned by l // classes quarter turns counter-clockwise. With reflections alone l //
classes is 1 where the class is mirrored left to right; with both it is 4 to 7 where it is mirrored and then
turned, modulo 4. Images are drawn independently, so one may come twice. With crops or flips they are then
changed by the rule of augmentation.py, as those of one set. Input value: v / 255 * 2 - 1 in float32.
"""

from __future__ import annotations

import numpy as np

from ..errors import UserError
from .augmentation import change, changes_of
from .draws import SeededTasks
from .images import ImageSet
from .preprocessing import orient, orientations, to_network_input


class BatchBuilder(SeededTasks):
    """Batch i of a seed: the same on every machine, in every process and order of access (the rule stands
    above).

    Args:
        images: an `ImageSet`. uint8 is scaled to [-1, 1]; floating point is taken as network input already.
        batch_size: images in a batch.
        seed: 0 .. 2**64 - 1.
        rotations: classes turned by 90, 180 and 270 degrees count as further classes.
        reflections: classes mirrored left to right count as further classes, turned or not.
        length: number of batches, as of `EpisodeBuilder`.
        crops: move each image a little, see augmentation.py.
        flips: mirror each image, or not, see augmentation.py.

    Raises:
        UserError: a number that is not positive, a class without images, rotations of images that are not
            square.
    """

    def __init__(
        self,
        images: ImageSet,
        batch_size: int,
        seed: int = 0,
        rotations: bool = False,
        length: int | None = None,
        crops: bool = False,
        flips: bool = False,
        reflections: bool = False,
    ):
        super().__init__(seed, length, batch_size=batch_size)
        self.images, self._orientations = images.images, orientations(rotations, reflections)
        self.crops, self.flips = bool(crops), bool(flips)
        self.labels = labels_of(images, rotations, reflections)
        empty = [name for name, own in zip(images.classes, self.images) if not len(own)]
        if empty:
            raise UserError(f"{empty[0]} has no images: leave it out.")
        height, width = self.images[0].shape[2:]
        if rotations and height != width:
            raise UserError(f"Rotations need square images, not {height}x{width}.")

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Builds a batch.

        Args:
            index: 0 .. len - 1.

        Returns:
            x float32 (batch_size, C, H, W), y int64 (batch_size,).

        Raises:
            IndexError: an index below 0 or from the length on.
        """
        draws, images, labels = self.draws(index), [], []
        for _ in range(self.batch_size):
            label = draws.below(self.labels)
            place, number = divmod(label, len(self.images))
            own = self.images[number]
            images.append(orient(own[draws.below(len(own))], self._orientations[place]))
            labels.append(label)
        x = np.stack(images)
        if self.crops or self.flips:
            x = change(x, changes_of(self.seed, index), self.crops, self.flips)
        x = to_network_input(x) if x.dtype == np.uint8 else x.astype(np.float32, copy=False)
        return x, np.array(labels, dtype=np.int64)


def labels_of(images: ImageSet, rotations: bool, reflections: bool = False) -> int:
    """How many labels the batches of an `ImageSet` have."""
    return len(images.classes) * len(orientations(rotations, reflections))
