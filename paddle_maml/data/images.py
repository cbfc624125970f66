"""Images by class: what every image data set of this library is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import UserError


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
                f"{self.name} lacks {len(missing)} of the {len(classes)} classes asked for, the first is "
                f"{missing[0]}."
            )
        chosen = [place[name] for name in classes]
        images = (
            self.images[chosen] if isinstance(self.images, np.ndarray) else [self.images[i] for i in chosen]
        )
        return ImageSet(self.name, tuple(classes), images)


def alphabet_of(class_name):
    """The part of a class's name before "/"."""
    return class_name.split("/")[0]
