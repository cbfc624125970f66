"""Losses and scores of tasks side by side."""

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest

from paddle_maml.objectives import CrossEntropy, MeanSquare, TaskLoss, objective

RANDOM = np.random.RandomState(0)
OUTPUTS = paddle.to_tensor(RANDOM.standard_normal((2, 6, 3)))
LABELS = paddle.to_tensor(RANDOM.randint(0, 3, (2, 6)))


def test_cross_entropy_and_accuracy_are_paddles():
    ours = CrossEntropy()
    losses, scores = (f(OUTPUTS, ours.targets(LABELS)).numpy() for f in (ours.loss, ours.score))
    for task in range(2):
        assert losses[task] == pytest.approx(F.cross_entropy(OUTPUTS[task], LABELS[task]).item())
        right = OUTPUTS[task].numpy().argmax(-1) == LABELS[task].numpy()
        assert scores[task] == pytest.approx(right.mean())


def test_mean_square_is_over_all_outputs():
    targets = paddle.to_tensor(RANDOM.standard_normal((2, 6, 3)))
    ours = MeanSquare()
    expected = ((OUTPUTS.numpy() - targets.numpy()) ** 2).mean(axis=(1, 2))
    np.testing.assert_allclose(ours.loss(OUTPUTS, ours.targets(targets)).numpy(), expected)
    np.testing.assert_allclose(ours.score(OUTPUTS, targets).numpy(), expected)


def test_a_users_loss_is_asked_task_by_task():
    seen = []

    def loss(outputs, labels):
        seen.append((outputs.shape, labels.shape))
        return F.cross_entropy(outputs, labels)

    ours = TaskLoss(loss)
    np.testing.assert_allclose(
        ours.loss(OUTPUTS, ours.targets(LABELS)).numpy(),
        CrossEntropy().loss(OUTPUTS, CrossEntropy().targets(LABELS)).numpy(),
    )
    assert seen == [([6, 3], [6])] * 2


@pytest.mark.parametrize("loss", ["hinge", 3, MeanSquare, None])
def test_what_is_no_loss_is_refused(loss):
    with pytest.raises(ValueError, match="loss must be one of cross-entropy, mean-square"):
        objective(loss)


def test_targets_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="targets must be finite"):
        MeanSquare().targets(paddle.to_tensor([[[float("nan")]]]))
