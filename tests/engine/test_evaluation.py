import numpy as np
import pytest

from paddle_maml import MAML, EpisodeBuilder, MetaLearner
from paddle_maml.engine.evaluation import evaluate
from paddle_maml.errors import UserError
from paddle_maml.networks.mlp import MLP
from paddle_maml.objectives import CrossEntropy


class FixedLearner:
    """Scores an episode by its own images: accuracy after k steps is (k + 1) / 10 plus the mean support
    image."""

    objective, net = CrossEntropy(), MAML(width=4)
    transductive, statistics, sublayers = True, None, net.sublayers

    def __init__(self, loss=1.0):
        self.loss, self.tasks = loss, []

    def finetune(self, x_spt, y_spt, x_qry, y_qry, steps=None, every_step=True):
        self.tasks.append(len(x_spt))
        accuracy = x_spt.mean(axis=(1, 2, 3, 4), dtype=np.float64)[:, None] + (np.arange(steps + 1) + 1) / 10
        return accuracy, np.full_like(accuracy, self.loss)


def builder():
    images = np.random.RandomState(0).randint(0, 256, (6, 5, 1, 4, 4)).astype("uint8")
    return EpisodeBuilder(images, n_way=3, k_shot=2, k_query=3, seed=1)


def test_mean_and_interval_over_episodes():
    learner, episodes = FixedLearner(), builder()
    result = evaluate(learner, episodes, 7, steps=2, batch=3)
    per_episode = np.array([episodes[i][0].mean(dtype=np.float64) for i in range(7)])
    assert learner.tasks == [3, 3, 1]
    assert result["episodes"] == 7
    np.testing.assert_allclose(
        result["accuracy_per_step"], per_episode.mean() + np.array([0.1, 0.2, 0.3]), rtol=1e-6
    )
    expected = 1.96 * per_episode.std(ddof=1) / np.sqrt(7)
    np.testing.assert_allclose(result["interval_per_step"], [expected] * 3, rtol=1e-5)
    assert (result["accuracy"], result["interval"], result["loss"]) == (
        result["accuracy_per_step"][-1],
        result["interval_per_step"][-1],
        1.0,
    )
    assert "transductive" in result["note"]


def test_batches_change_nothing_and_weights_stay():
    images = np.random.RandomState(0).randint(0, 256, (6, 5, 1, 16, 16)).astype("uint8")
    episodes = EpisodeBuilder(images, n_way=3, k_shot=2, k_query=3, seed=1)
    learner = MetaLearner(MAML(n_way=3, width=4, image_size=16), inner_steps=2)
    before = [parameter.numpy().copy() for parameter in learner.parameters()]
    one, other = evaluate(learner, episodes, 5, batch=2), evaluate(learner, episodes, 5, batch=5)
    np.testing.assert_allclose(one["loss_per_step"], other["loss_per_step"], rtol=1e-5)
    assert len(one["accuracy_per_step"]) == 3
    for parameter, old in zip(learner.parameters(), before):
        np.testing.assert_array_equal(parameter.numpy(), old)


def test_divergence_is_an_error():
    with pytest.raises(UserError, match="inner_lr"):
        evaluate(FixedLearner(loss=np.nan), builder(), 2, steps=1)


def test_without_batch_norm_no_statistics_are_named():
    """A perceptron without batch norm, asked for the statistics of the query set."""
    learner = MetaLearner(MLP(16, hidden=(4,), n_outputs=3, batch_norm=False), inner_steps=1)
    learner.statistics = "query"
    result = evaluate(learner, builder(), 2)
    assert "note" not in result and "statistics" not in result
