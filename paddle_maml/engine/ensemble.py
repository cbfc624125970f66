"""What is scored in validation and test: a learner as the settings test it, or several together."""

from __future__ import annotations

import contextlib
from typing import Iterator, Sequence

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

from ..errors import UserError
from ..learners.base import Learner
from ..objectives import CrossEntropy
from .evaluation import choose_statistics
from .settings import Settings


class Ensemble:
    """Several learners as one, for `evaluation.evaluate`.

    Each adapts by itself, and their probabilities are averaged. So MAML++ tests its five best validated
    checkpoints (Antoniou et al. 2019), where the code averages the outputs before the softmax
    (`evaluated_test_set_using_the_best_models`).

    Args:
        learners: the members, for the same tasks.

    Raises:
        UserError: they have no probabilities.
    """

    def __init__(self, learners: Sequence[Learner]):
        self.learners, self.objective = list(learners), learners[0].objective
        self.statistics = learners[0].statistics
        if not isinstance(self.objective, CrossEntropy):
            raise UserError("An ensemble averages probabilities, which a regression has none of: name one.")

    @property
    def transductive(self) -> bool:
        return any(learner.transductive for learner in self.learners)

    def sublayers(self) -> list[nn.Layer]:
        """All layers of the members."""
        return [layer for learner in self.learners for layer in learner.sublayers()]

    def predict(self, x_spt, y_spt, x_qry, steps: int | None = None) -> np.ndarray:
        """Logarithms of the mean probabilities of the query inputs, (T, N, n_way).

        Args:
            x_spt, y_spt, x_qry: as of `Learner.predict`.
            steps: inner steps; the members' own by default.
        """
        how = {} if steps is None else {"steps": steps}
        with paddle.no_grad():
            outputs = [learner.predict(x_spt, y_spt, x_qry, **how) for learner in self.learners]
            logs = paddle.stack([F.log_softmax(paddle.to_tensor(own), axis=-1) for own in outputs])
            # By way of logarithms, since a probability of zero has none.
            return (paddle.logsumexp(logs, axis=0) - float(np.log(len(outputs)))).numpy()

    def finetune(
        self, x_spt, y_spt, x_qry, y_qry, steps: int | None = None, every_step: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """(scores, losses) of tasks, float64 (T, 1): those after the last step alone, `every_step` or not."""
        with paddle.no_grad():
            outputs = paddle.to_tensor(self.predict(x_spt, y_spt, x_qry, steps))
            targets = self.objective.targets(paddle.to_tensor(y_qry))
            measured = [measure(outputs, targets) for measure in (self.objective.score, self.objective.loss)]
        scores, losses = [values.numpy().astype(np.float64).reshape([-1, 1]) for values in measured]
        return scores, losses


@contextlib.contextmanager
def as_tested(settings: Settings, learners: Sequence[Learner]) -> Iterator[Learner | Ensemble]:
    """What `evaluate` is to score in validation and test: one learner, or several together, with the batch
    statistics and, inside, the inner rates that the settings give.

    Raises:
        UserError: as `choose_statistics` and `Ensemble`.
    """
    with contextlib.ExitStack() as scaled:
        for learner in learners:
            if settings.test_statistics:
                choose_statistics(learner, settings.test_statistics)
            if settings.test_inner_lr_factor != 1:
                scaled.enter_context(inner_rates(learner, settings.test_inner_lr_factor))
        yield learners[0] if len(learners) == 1 else Ensemble(learners)


@contextlib.contextmanager
def inner_rates(learner: Learner, factor: float) -> Iterator[None]:
    """A learner that has inner rates with all of them times a factor; afterwards they are what they were."""
    rate, rates = learner.inner_lr, learner.inner_rates
    learned = None if rates is None else rates.numpy().copy()
    scale_inner_rates(learner, factor)
    try:
        yield
    finally:
        learner.inner_lr = rate
        if learned is not None:
            rates.set_value(learned)


def scale_inner_rates(learner: Learner, factor: float) -> None:
    """Multiply the inner rates of a learner that has them."""
    learner.inner_lr *= factor
    if learner.inner_rates is not None:
        rates = learner.inner_rates.numpy()
        learner.inner_rates.set_value(rates * np.asarray(factor, rates.dtype))
