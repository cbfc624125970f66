"""The prototypical network: its loss and gradient, and whose statistics answer."""

import numpy as np
import paddle
import pytest
from paddle import nn

import paddle_maml  # noqa: F401 - before Paddle
from paddle_maml.learners.prototypical import PrototypicalLearner, prototypes, squared_distances
from paddle_maml.networks.conv4 import Conv4


class Scaled(nn.Layer):
    """x times two parameters: an embedding of two numbers."""

    def __init__(self, weights):
        super().__init__()
        self.weight = self.create_parameter([2], default_initializer=nn.initializer.Assign(np.array(weights)))

    def forward(self, x):
        return x * self.weight


def episode(random, tasks=2, n_way=3, k_shot=2, k_query=4, shape=(2,)):
    y_spt = np.tile(np.repeat(np.arange(n_way), k_shot), [tasks, 1])
    y_qry = np.tile(np.repeat(np.arange(n_way), k_query), [tasks, 1])
    x_spt, x_qry = (random.standard_normal([*y.shape, *shape]) for y in (y_spt, y_qry))
    return x_spt, y_spt, x_qry, y_qry


def test_two_parameters_by_hand(float64):
    """One image a class, two classes: logits -(w1 dx)^2 - (w2 dy)^2."""
    learner = PrototypicalLearner(Scaled([1.5, -0.5]))
    x_spt, x_qry = np.array([[0.0, 0.0], [1.0, 2.0]]), np.array([[0.25, 0.5]])
    loss, accuracy = learner.meta_loss(x_spt, np.array([0, 1]), x_qry, np.array([0]))
    loss.backward()
    squares = (x_qry - x_spt) ** 2  # of dx and dy, for each class
    distances = squares @ np.array([1.5, -0.5]) ** 2
    p = np.exp(-distances) / np.exp(-distances).sum()
    assert float(loss) == pytest.approx(-np.log(p[0]), abs=1e-12) and float(accuracy) == 1
    # d loss / d distance = (1, 0) - p; d distance / d w = 2 w times the square.
    expected = (np.array([1.0, 0.0]) - p) @ squares * 2 * np.array([1.5, -0.5])
    np.testing.assert_allclose(learner.net.weight.grad.numpy(), expected, atol=1e-12)


def test_loss_and_gradient_are_pytorchs(float64):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    random = np.random.RandomState(0)
    x_spt, y_spt, x_qry, y_qry = episode(random, shape=(6,))
    layer = nn.Linear(6, 5)
    learner = PrototypicalLearner(layer)
    loss, accuracy = learner.meta_loss(x_spt, y_spt, x_qry, y_qry)
    loss.backward()
    weight, bias = (torch.tensor(p.numpy(), requires_grad=True) for p in layer.parameters())
    losses, hits = [], []
    for task in range(2):
        embed = [torch.tensor(x[task]) @ weight + bias for x in (x_spt, x_qry)]
        centres = torch.stack([embed[0][y_spt[task] == label].mean(dim=0) for label in range(3)])
        logits, labels = -(torch.cdist(embed[1], centres) ** 2), torch.tensor(y_qry[task])
        losses.append(torch.nn.functional.cross_entropy(logits, labels))
        hits.append((logits.argmax(dim=1) == labels).double().mean())
    sum(losses).div(2).backward()
    assert float(loss) == pytest.approx(sum(losses).item() / 2, rel=1e-12)
    assert float(accuracy) == pytest.approx(sum(hits).item() / 2)
    np.testing.assert_allclose(layer.weight.grad.numpy(), weight.grad.numpy(), atol=1e-12)
    np.testing.assert_allclose(layer.bias.grad.numpy(), 0, atol=1e-12)


def test_uneven_shots_and_a_label_without_an_input(float64):
    points = paddle.to_tensor([[[0.0], [2.0], [5.0]]])
    centres = prototypes(points, paddle.to_tensor([[0, 0, 1]]))
    assert centres.numpy().tolist() == [[[1.0], [5.0]]]
    assert squared_distances(points, centres).numpy().tolist() == [[[1.0, 25.0], [1.0, 9.0], [16.0, 0.0]]]
    with pytest.raises(ValueError, match="every label from 0"):
        prototypes(points, paddle.to_tensor([[0, 0, 2]]))


@pytest.mark.parametrize("native", [True, False])
def test_population_answers_do_not_depend_on_companions(native, monkeypatch):
    """After `settle` an answer is the same alone and among others."""
    if not native:
        monkeypatch.setattr("paddle_maml.kernels.native.usable", lambda *arguments: False)
    paddle.seed(1)
    learner = PrototypicalLearner(Conv4(width=16, image_size=16))
    random = np.random.RandomState(0)
    task = [
        a.astype(np.float32 if a.dtype == float else np.int64) for a in episode(random, shape=(1, 16, 16))
    ]
    before = learner.predict(*task[:3])
    learner.settle(*task)
    x_spt, y_spt, x_qry, y_qry = task
    together = learner.predict(x_spt, y_spt, x_qry)
    assert np.abs(together - before).max() > 0.1
    alone = np.concatenate([learner.predict(x_spt, y_spt, x_qry[:, [n]]) for n in range(12)], axis=1)
    np.testing.assert_allclose(alone, together, rtol=1e-4, atol=1e-4 * np.abs(together).max())
    together = learner.predict(x_spt, y_spt, x_qry, statistics="query")
    alone = learner.predict(x_spt, y_spt, x_qry[:, :1], statistics="query")
    assert np.abs(alone[:, 0] - together[:, 0]).max() > 1e-3 * np.abs(together).max()
    assert not learner.transductive


def test_statistics_of_one_batch_are_what_training_had():
    """Settled on one task, the population's embeddings of its inputs are those of training."""
    paddle.seed(2)
    learner = PrototypicalLearner(Conv4(width=16, image_size=16))
    x = np.random.RandomState(1).standard_normal([1, 6, 1, 16, 16]).astype(np.float32)
    labels = np.arange(6)[None]
    learner.settle(x[:, :4], labels[:, :4], x[:, 4:], labels[:, 4:])
    both = [learner.embed(paddle.to_tensor(x), of).numpy() for of in ("population", "query")]
    np.testing.assert_allclose(both[0], both[1], atol=1e-4 * np.abs(both[1]).max())


def test_statistics_of_several_tasks_are_the_mean():
    learner = PrototypicalLearner(Conv4(width=16, image_size=16))
    x = np.random.RandomState(1).standard_normal([3, 6, 1, 16, 16]).astype(np.float32)
    labels = np.tile(np.arange(6), [3, 1])

    def settled(tasks):
        learner.settle(x[tasks, :4], labels[tasks, :4], x[tasks, 4:], labels[tasks, 4:])
        return [tensor.numpy() for tensor in learner.buffers()]

    single = [settled([task]) for task in range(3)]
    for mean, *each in zip(settled([0, 1, 2]), *single):
        np.testing.assert_allclose(mean, np.mean(each, axis=0), rtol=1e-4, atol=1e-6)


def test_settled_statistics_are_kept_with_the_weights():
    first, second = (PrototypicalLearner(Conv4(width=16, image_size=16)) for _ in range(2))
    random = np.random.RandomState(0)
    task = [
        a.astype(np.float32 if a.dtype == float else np.int64) for a in episode(random, shape=(1, 16, 16))
    ]
    first.settle(*task)
    second.set_state_dict(first.state_dict())
    assert (first.predict(*task[:3]) == second.predict(*task[:3])).all()


@pytest.mark.parametrize("labels, message", [([0.2, 1.7], "whole numbers"), ([-1, 0], "0 and above, not -1")])
def test_labels_that_are_none_are_refused(labels, message):
    x = np.ones((2, 4), np.float32)
    with pytest.raises(ValueError, match=message):
        PrototypicalLearner(nn.Linear(4, 3)).predict(x, np.array(labels), x)


def test_one_task_is_answered_in_kind_and_steps_are_refused(float64):
    learner = PrototypicalLearner(nn.Linear(2, 3))
    x_spt, y_spt, x_qry, y_qry = (a[0] for a in episode(np.random.RandomState(0)))
    scores, losses = learner.finetune(x_spt, y_spt, x_qry, y_qry)
    assert scores.shape == losses.shape == (1,)
    assert losses[0] == pytest.approx(float(learner.meta_loss(x_spt, y_spt, x_qry, y_qry)[0]))
    with pytest.raises(ValueError, match="no inner steps"):
        learner.finetune(x_spt, y_spt, x_qry, y_qry, steps=1)
    with pytest.raises(ValueError, match="statistics must be one of query"):
        learner.predict(x_spt, y_spt, x_qry, statistics="population")
