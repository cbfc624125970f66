"""What a task says of images."""

from __future__ import annotations

import dataclasses

import numpy as np

from ..report.tables import prediction_table


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
    """The answers to N query images; `print` shows them as a table.

    Attributes:
        classes: the labels, in the order of the columns of `probabilities`.
        probabilities: float64 (N, classes), rows of sum 1: the softmax of the scores.
        names: of each image its path, or what it is called among those given.
        truth: of each image the name of the folder it lies in; None where that says nothing.
        inverted: images whose light ink was made dark.
        statistics: whose statistics batch norm used.
    """

    classes: tuple
    probabilities: np.ndarray
    names: tuple[str, ...]
    truth: tuple[str, ...] | None = None
    inverted: int = 0
    statistics: str = "support"

    def __len__(self) -> int:
        return len(self.probabilities)

    @property
    def labels(self) -> tuple:
        """Of each image the label that is most probable."""
        return tuple(self.classes[number] for number in self.probabilities.argmax(axis=1))

    @property
    def accuracy(self) -> float | None:
        """The fraction of images whose label is the name of their folder; None where that says nothing."""
        if self.truth is None:
            return None
        return sum(str(label) == true for label, true in zip(self.labels, self.truth)) / len(self)

    def rows(self) -> list[dict]:
        """Of each image its name, its label, the probability of that, the true label where it is known, and
        the probability of each class, as plain values."""
        rows = []
        for number, (name, label) in enumerate(zip(self.names, self.labels)):
            values = self.probabilities[number].tolist()
            truth = {} if self.truth is None else {"truth": self.truth[number]}
            by_class = dict(zip(map(str, self.classes), values))
            answer = {"image": name, "label": str(label), "probability": max(values)}
            rows.append({**answer, **truth, "probabilities": by_class})
        return rows

    def __str__(self) -> str:
        return prediction_table(self.rows())
