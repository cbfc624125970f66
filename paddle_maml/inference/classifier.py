"""Trained weights as a classifier of a user's own images: a few of each class, and then any others."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from ..data.images import ImageSet
from ..engine.assembly import input_shape, make_learner, own_network_may_fail, settings_for
from ..engine.ensemble import scale_inner_rates
from ..engine.evaluation import without_dropout
from ..engine.provenance import find_weights, look_up, names
from ..engine.settings import Settings
from ..engine.weights import load_weights
from ..errors import UserError
from ..learners.base import Learner
from .export import export
from .images import network_inputs
from .prediction import Prediction

# Query images that are computed together where they do not depend on each other.
TOGETHER = 64


def load(source: str | os.PathLike, **settings: Any) -> Classifier:
    """A classifier from trained weights.

    Args:
        source: the name of weights that come with the library, such as "5way-1shot", "5way-5shot",
            "20way-1shot" or "20way-5shot"; a run folder or a checkpoint folder, whose best weights are taken;
            or a file of weights in one.
        settings: fields of `Settings` in the place of those of the run, such as `test_inner_steps=10`; a file
            of weights on its own needs those that make its network. `network="MODULE:FUNCTION"` allows the
            import of a network of your own.

    Raises:
        UserError: there are no such weights, they do not belong to the settings, or they are no classifier's.
    """
    source = os.fspath(source)
    weights, origin = find_weights(source, or_name=True)
    if origin is None and not settings:
        raise UserError(
            f"{source} is a file of weights on its own, whose network is not known: name its run folder, or "
            "give settings, such as n_way=5."
        )
    of_weights = settings_for(origin and origin.settings, settings)
    return Classifier(weights, of_weights, look_up(source)[2] if source in names() else None)


class Classifier:
    """Weights that adapt to a task.

    Args:
        weights: path of a file of weights.
        settings: `Settings` of their run.
        card: the card of weights that come with the library.

    Attributes:
        settings: as given.
        card: as given; `card["test"]` has the accuracy with the batch statistics of the query set, and
            `card["test_support_statistics"]` that with those of the support set.
        n_way: the classes of a task at most; None where the learner takes any number.
        statistics: the choices that `Task.predict` has; the first is its default.

    Raises:
        UserError: as `load`.
    """

    def __init__(self, weights: str, settings: Settings, card: dict | None = None):
        if settings.loss != "cross-entropy":
            raise UserError(f"{weights} is of the regression {settings.dataset}, which has no classes.")
        self.settings, self.card = settings, card
        nothing = ImageSet("own images", (), [np.empty((0, *input_shape(settings)), np.uint8)])
        self.learner = make_learner(settings, nothing)
        load_weights(self.learner, weights)
        if settings.test_inner_lr_factor != 1:
            scale_inner_rates(self.learner, settings.test_inner_lr_factor)
        # Embeddings know no number of classes, unless what reads them does.
        self.n_way = getattr(self.learner, "n_way", None) if settings.embeds else settings.n_way
        # Those first by which an answer does not depend on other queries; "one" is for studies.
        first = [name for name in ("support", "population") if name in self.learner.STATISTICS]
        self.statistics = (*first, *(name for name in ("query",) if name in self.learner.STATISTICS))

    def adapt(self, support: Any, labels: Any = None, ink: str = "auto", steps: int | None = None) -> Task:
        """Learn a task from a few images of each class.

        Args:
            support: a folder that holds a folder of images for each class, named by its label; or images and
                their labels, see `images_of`. Two classes to `n_way` of them, and any number of images of
                each; sizes may differ.
            labels: of each image a text or a number, where `support` is no folder.
            ink: "auto": light ink on dark paper is found and inverted, see data/drawings.py; "dark": images
                are taken as they are; "light": all are inverted. It holds for the task's queries too.
            steps: inner steps, 0 or more; by default those of the run's tests. Past the last step that has
                learned rates, its rates go on.

        Raises:
            UserError: an image that cannot be used, too few or too many classes, missing labels; steps that
                are no number of them, or of a learner that has none.
        """
        if steps is None:
            steps = self.settings.steps_at_test
        elif not hasattr(self.learner, "adapt"):
            kind = type(self.learner).__name__
            raise UserError(f"steps is {steps!r}, but a {kind} has no inner steps: leave it out.")
        elif not isinstance(steps, (int, np.integer)) or steps < 0:
            raise UserError(f"steps is {steps!r}, but must be a whole number, 0 or more.")
        given, x, inverted = network_inputs(support, labels, self.settings, ink, "the support set")
        classes = list(dict.fromkeys(one.label for one in given))
        if None in classes:
            raise UserError(
                f"{given[0].name} has no label: give a folder of folders named by label, or labels, one for "
                "each image."
            )
        if not 2 <= len(classes) <= (self.n_way or len(classes)):
            most = f"2 to {self.n_way}" if self.n_way else "2 or more"
            raise UserError(
                f"The support set has {len(classes)} classes, but these weights tell {most} apart."
            )
        y = np.array([classes.index(one.label) for one in given], np.int64)
        return Task(self, classes, x, y, ink, inverted, steps)


class Task:
    """A classifier that has seen a support set.

    Attributes:
        classes: the labels, in the order of the probabilities.
        shots: the support images of each class.
        inverted: support images whose light ink was made dark.
    """

    def __init__(
        self,
        classifier: Classifier,
        classes: list,
        x: np.ndarray,
        y: np.ndarray,
        ink: str,
        inverted: int,
        steps: int | None,
    ):
        self.classes, self.inverted, self._ink = tuple(classes), inverted, ink
        self.shots = tuple(np.bincount(y, minlength=len(classes)).tolist())
        self._classifier, self._support, self._params = classifier, (x, y), None
        settings, learner = classifier.settings, classifier.learner
        with own_network_may_fail(settings), without_dropout(learner):
            if hasattr(learner, "adapt"):
                self._params = learner.adapt(x, y, steps)

    def predict(self, queries: Any, statistics: str | None = None) -> Prediction:
        """Classify images.

        Args:
            queries: images in any form that `images_of` takes. Of a folder that holds folders the true labels
                are known, and the prediction has an accuracy.
            statistics: whose statistics batch norm uses, one of `Classifier.statistics`. "support", the
                default: those of the support set, so that an answer does not depend on the other queries.
                "query": those of the queries passed together, as in the published protocols; it needs many of
                them, of all classes alike. Learners that embed have "population" in the place of "support":
                those of training images.

        Raises:
            UserError: an image that cannot be used, none, or the folder of a class that is not in the task.
        """
        choices = self._classifier.statistics
        statistics = choices[0] if statistics is None else statistics
        if statistics not in choices:
            raise UserError(f"statistics is {statistics!r}, but must be one of {', '.join(choices)}.")
        settings = self._classifier.settings
        given, x, inverted = network_inputs(queries, None, settings, self._ink, "the query set")
        known = {str(label) for label in self.classes}
        unknown = next((one for one in given if one.label is not None and one.label not in known), None)
        if unknown:
            raise UserError(
                f"{unknown.name} is in the folder of a class {unknown.label!r}, but the task has "
                f"{', '.join(map(str, self.classes))}."
            )
        probabilities = self._probabilities(x, statistics)
        return Prediction(
            classes=self.classes,
            probabilities=probabilities,
            names=tuple(one.name for one in given),
            truth=tuple(one.label for one in given) if given[0].label is not None else None,
            inverted=inverted,
            statistics=statistics,
        )

    def export(self, path: str | os.PathLike) -> list[str]:
        """Save the adapted network with `paddle.jit.save`, for programs without this library: from images
        (N, C, H, W), made as in docs/use.md, to the probabilities of the classes (N, classes), with the batch
        statistics of the support set.

        Args:
            path: such as "exported/task": the files' path without their endings.

        Returns:
            The paths of the files: the program, its weights, and PATH.classes.txt with the labels.

        Raises:
            UserError: the learner has no adapted network, or Paddle cannot save the user's own.
        """
        learner = self._classifier.learner
        if self._params is None:
            raise UserError(
                "What this learner makes of a task is no network of its own that could be exported: take "
                "weights of maml."
            )
        return export(learner, self._params, self._support[0], self.classes, os.fspath(path))

    def _probabilities(self, x, statistics):
        """float64 (N, classes), rows of sum 1."""
        together = len(x) if statistics == "query" else TOGETHER
        settings, learner = self._classifier.settings, self._classifier.learner
        with own_network_may_fail(settings), without_dropout(learner):
            parts = [
                self._outputs(learner, x[start : start + together], statistics)
                for start in range(0, len(x), together)
            ]
        logits = np.concatenate(parts)[:, : len(self.classes)].astype(np.float64)
        if not np.isfinite(logits).all():
            raise UserError("A score is not a finite number: the adaptation went beyond all bounds.")
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        return exponentials / exponentials.sum(axis=1, keepdims=True)

    def _outputs(self, learner: Learner, x, statistics):
        x_spt, y_spt = self._support
        if self._params is None:
            return learner.predict(x_spt, y_spt, x, statistics=statistics)
        return learner.outputs(x, self._params, x_spt if statistics == "support" else None).numpy()
