"""What a task is about: its loss, and the score that is reported."""

from __future__ import annotations

import typing
from typing import Any, Callable, Protocol

import paddle
import paddle.nn.functional as F

from .kernels import operators


class Objective(Protocol):
    """Loss and score of T tasks side by side.

    Attributes:
        score_name: what the score is, such as "accuracy".
        higher_is_better: whether a higher score is a better one.
        target_axes: axes of the target of one input, 0 for a label; None where only the targets' type tells.
        exact: whether its second derivatives are known to be exact, see `TaskNetwork`.
    """

    score_name: str
    higher_is_better: bool
    target_axes: int | None
    exact: bool

    def targets(self, y: paddle.Tensor) -> Any:
        """Targets (T, N, ...) as `loss` and `score` take them; ValueError for what suits no network."""

    def loss(self, outputs: paddle.Tensor, targets: Any) -> paddle.Tensor:
        """The loss of each task, (T,), from outputs (T, N, ...); differentiable twice."""

    def score(self, outputs: paddle.Tensor, targets: Any) -> paddle.Tensor:
        """The score of each task, (T,)."""


class _Labels(typing.NamedTuple):
    numbers: paddle.Tensor  # int64 (T, N)
    highest: int


class CrossEntropy:
    """Classification: labels 0 .. n - 1 for outputs (T, N, n), the mean cross-entropy, and the accuracy."""

    score_name, higher_is_better, target_axes, exact = "accuracy", True, 0, True

    def targets(self, y: paddle.Tensor) -> _Labels:
        if not (paddle.is_integer(y) or y.dtype == paddle.bool):
            raise ValueError(f"labels must be whole numbers, not {y.dtype}")
        y = y.astype("int64")
        lowest, highest = int(y.min()), int(y.max())
        if lowest < 0:
            raise ValueError(f"labels must be 0 and above, not {lowest}")
        return _Labels(y, highest)

    def loss(self, outputs: paddle.Tensor, targets: _Labels) -> paddle.Tensor:
        labels, classes = targets.numbers, outputs.shape[-1]
        if outputs.ndim != 3 or outputs.shape[:2] != labels.shape:
            raise ValueError(
                f"cross-entropy needs outputs (T, N, classes) for labels {tuple(labels.shape)}, "
                f"not {tuple(outputs.shape)}"
            )
        if targets.highest >= classes:
            raise ValueError(f"labels must be 0 to {classes - 1}, not up to {targets.highest}")
        return operators.cross_entropy(outputs, F.one_hot(labels, classes).astype(outputs.dtype))

    def score(self, outputs: paddle.Tensor, targets: _Labels) -> paddle.Tensor:
        return (outputs.argmax(axis=-1) == targets.numbers).astype(outputs.dtype).mean(axis=-1)


class MeanSquare:
    """Regression: targets shaped as the outputs, the mean square of the differences, which is the score
    too."""

    score_name, higher_is_better, target_axes, exact = "mean square error", False, 1, True

    def targets(self, y: paddle.Tensor) -> paddle.Tensor:
        if paddle.is_integer(y) or y.dtype == paddle.bool:
            raise ValueError(f"targets of a mean square error must be floating point, not {y.dtype}")
        if not bool(paddle.isfinite(y).all()):
            raise ValueError("targets must be finite numbers; some are infinite or NaN")
        return y

    def loss(self, outputs: paddle.Tensor, targets: paddle.Tensor) -> paddle.Tensor:
        if outputs.shape != targets.shape:
            raise ValueError(
                f"the mean square error needs targets shaped as the outputs {tuple(outputs.shape)}, "
                f"not {tuple(targets.shape)}"
            )
        difference = outputs - targets.astype(outputs.dtype)
        return (difference * difference).reshape([outputs.shape[0], -1]).mean(axis=-1)

    def score(self, outputs: paddle.Tensor, targets: paddle.Tensor) -> paddle.Tensor:
        return self.loss(outputs, targets)


class TaskLoss:
    """A user's loss of one task, (outputs (N, ...), targets (N, ...)) to a scalar; its score is the loss.

    For second order it must be differentiable twice: Paddle's own cross_entropy is not, `CrossEntropy` is.
    """

    score_name, higher_is_better, target_axes, exact = "loss", False, None, False

    def __init__(self, function: Callable[[paddle.Tensor, paddle.Tensor], paddle.Tensor]):
        self._function = function

    def targets(self, y: paddle.Tensor) -> paddle.Tensor:
        return y

    def loss(self, outputs: paddle.Tensor, targets: paddle.Tensor) -> paddle.Tensor:
        losses = []
        for task in range(outputs.shape[0]):
            loss = self._function(outputs[task], targets[task])
            if not isinstance(loss, paddle.Tensor) or loss.size != 1:
                got = (
                    f"a tensor of shape {tuple(loss.shape)}"
                    if isinstance(loss, paddle.Tensor)
                    else type(loss).__name__
                )
                raise ValueError(f"the loss must return a scalar for each task, not {got}")
            if not bool(paddle.isfinite(loss)):
                raise ValueError(f"the loss of a task is {loss.item()}, not a finite number")
            losses.append(loss.reshape([1]))
        return losses[0] if len(losses) == 1 else paddle.concat(losses)

    def score(self, outputs: paddle.Tensor, targets: paddle.Tensor) -> paddle.Tensor:
        return self.loss(outputs, targets)


OBJECTIVES = {"cross-entropy": CrossEntropy, "mean-square": MeanSquare}


def objective(loss: str | Callable | Objective) -> Objective:
    """The objective that an argument `loss` stands for.

    Args:
        loss: "cross-entropy", "mean-square", a function of the outputs and targets of one task, or an
            `Objective`.

    Raises:
        ValueError: it is none of these.
    """
    if isinstance(loss, str) and loss in OBJECTIVES:
        return OBJECTIVES[loss]()
    if hasattr(loss, "target_axes") and not isinstance(loss, type):
        return loss
    if callable(loss) and not isinstance(loss, type):
        return TaskLoss(loss)
    raise ValueError(f"loss must be one of {', '.join(OBJECTIVES)}, a function or an Objective, not {loss!r}")
