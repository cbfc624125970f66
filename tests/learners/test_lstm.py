"""The LSTM: its outputs and gradient against PyTorch, its shuffling, and what its answers depend on."""

import zlib

import numpy as np
import paddle
import pytest
from paddle import nn

import paddle_maml  # noqa: F401 - before Paddle
from paddle_maml.data.episodes import meta_batch
from paddle_maml.engine import checkpoint
from paddle_maml.engine.weights import load_weights, optimizer_state, set_optimizer_state
from paddle_maml.errors import UserError
from paddle_maml.learners.lstm import LSTMLearner, in_rounds
from paddle_maml.learners.prototypical import PrototypicalLearner
from paddle_maml.networks.conv4 import Conv4


def episode(random, tasks=2, n_way=3, k_shot=2, k_query=4, shape=(5,)):
    y_spt = np.tile(np.repeat(np.arange(n_way), k_shot), [tasks, 1])
    y_qry = np.tile(np.repeat(np.arange(n_way), k_query), [tasks, 1])
    x_spt, x_qry = (random.standard_normal([*y.shape, *shape]) for y in (y_spt, y_qry))
    return x_spt, y_spt, x_qry, y_qry


def small(hidden=7):
    paddle.seed(3)
    return LSTMLearner(nn.Linear(5, 4), n_way=3, features=4, hidden=hidden)


class Torch:
    """The same learner in PyTorch: one task, the support set in the order that is given."""

    def __init__(self, learner):
        torch = self.torch = pytest.importorskip("torch", reason="PyTorch is not installed")
        self.parameters = {
            name: torch.tensor(p.numpy(), requires_grad=True) for name, p in learner.named_parameters()
        }
        self.lstm = torch.nn.LSTM(learner.features + learner.n_way, learner.hidden).double()
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            # Both have the gates in the order input, forget, cell, output.
            delattr(self.lstm, f"{name}_l0")
            setattr(self.lstm, f"{name}_l0", torch.nn.Parameter(self.parameters[f"lstm.{name}"].detach()))
            self.parameters[f"lstm.{name}"] = getattr(self.lstm, f"{name}_l0")

    def logits(self, x_spt, y_spt, x_qry, n_way=3):
        torch, own = self.torch, self.parameters

        def embed(x):
            return torch.tensor(x) @ own["net.weight"] + own["net.bias"]

        labels = torch.nn.functional.one_hot(torch.tensor(y_spt), n_way).double()
        _, state = self.lstm(torch.cat([embed(x_spt), labels], dim=1))
        answers = []
        for query in embed(x_qry):
            hidden, _ = self.lstm(torch.cat([query, torch.zeros(n_way).double()])[None], state)
            answers.append(hidden[0] @ own["readout.weight"] + own["readout.bias"])
        return torch.stack(answers)


def test_outputs_are_pytorchs(float64):
    learner = small()
    other = Torch(learner)
    x_spt, y_spt, x_qry, _ = episode(np.random.RandomState(0))
    logits = learner.predict(x_spt, y_spt, x_qry)
    order = [0, 2, 4, 1, 3, 5]  # in rounds: an input of each class, then the next of each
    for task in range(2):
        expected = other.logits(x_spt[task][order], y_spt[task][order], x_qry[task])
        np.testing.assert_allclose(logits[task], expected.detach().numpy(), atol=1e-12)
        np.testing.assert_allclose(learner.predict(x_spt[task], y_spt[task], x_qry[task]), logits[task])


def test_loss_and_gradient_are_pytorchs(float64):
    """The order and the labels of a task follow from its support inputs and the meta-iteration."""
    learner = small()
    other = Torch(learner)
    x_spt, y_spt, x_qry, y_qry = episode(np.random.RandomState(0))
    loss, accuracy = learner.meta_loss(x_spt, y_spt, x_qry, y_qry, iteration=5)
    loss.backward()
    losses, hits, shuffles = [], [], []
    for task in range(2):
        random = np.random.RandomState([zlib.crc32(x_spt[task].tobytes()), 5])
        order, names = random.permutation(6), random.permutation(3)
        shuffles.append((order.tolist(), names.tolist()))
        logits = other.logits(x_spt[task][order], names[y_spt[task]][order], x_qry[task])
        labels = other.torch.tensor(names[y_qry[task]])
        losses.append(other.torch.nn.functional.cross_entropy(logits, labels))
        hits.append(float((logits.argmax(dim=1) == labels).double().mean()))
    assert shuffles[0] != shuffles[1] and shuffles[0][0] != sorted(shuffles[0][0])
    sum(losses).div(2).backward()
    assert float(loss) == pytest.approx(np.mean([one.item() for one in losses]), rel=1e-12)
    assert float(accuracy) == pytest.approx(np.mean(hits))
    for name, parameter in learner.named_parameters():
        gradient = other.parameters[name].grad
        assert gradient.abs().max() > 0
        np.testing.assert_allclose(parameter.grad.numpy(), gradient.numpy(), atol=1e-12, err_msg=name)


def test_shuffling_depends_on_the_task_and_the_iteration_alone(float64):
    learner = small()
    tasks = episode(np.random.RandomState(0), tasks=3)
    together = float(learner.meta_loss(*tasks, iteration=1)[0])
    alone = [float(learner.meta_loss(*(a[[n]] for a in tasks), iteration=1)[0]) for n in range(3)]
    assert together == pytest.approx(np.mean(alone), rel=1e-12)
    assert together != pytest.approx(float(learner.meta_loss(*tasks, iteration=2)[0]), rel=1e-6)


def test_an_answer_depends_on_no_other_query_input():
    paddle.seed(1)
    learner = LSTMLearner(Conv4(width=16, image_size=16), n_way=3, features=16, hidden=8)
    task = [
        a.astype(np.float32 if a.dtype == float else np.int64)
        for a in episode(np.random.RandomState(0), shape=(1, 16, 16))
    ]
    before = learner.predict(*task[:3])
    learner.settle(*task)
    x_spt, y_spt, x_qry, _ = task
    together = learner.predict(x_spt, y_spt, x_qry)
    assert np.abs(together - before).max() > 1e-3
    alone = np.concatenate([learner.predict(x_spt, y_spt, x_qry[:, [n]]) for n in range(12)], axis=1)
    np.testing.assert_allclose(alone, together, rtol=1e-4, atol=1e-5)
    assert np.ptp(together, axis=1).min() > 1e-3  # and it does depend on the input
    assert not learner.transductive


def test_the_order_of_classes_does_not_matter_in_testing(float64):
    learner = small()
    x_spt, y_spt, x_qry, _ = (a[0] for a in episode(np.random.RandomState(0)))
    assert in_rounds(np.array([1, 1, 0, 2, 0, 1])).tolist() == [2, 0, 3, 4, 1, 5]
    turned = [4, 0, 5, 1, 2, 3]  # inputs of one class stay in order
    np.testing.assert_allclose(
        learner.predict(x_spt[turned], y_spt[turned], x_qry), learner.predict(x_spt, y_spt, x_qry), atol=1e-12
    )


class Clusters:
    """Tasks of three points and others near them."""

    def __getitem__(self, index):
        random = np.random.RandomState(index)
        centres, labels = random.standard_normal([3, 16]), np.tile(np.arange(3), 3)
        points = (centres[labels] + 0.1 * random.standard_normal([9, 16])).astype(np.float32)
        return points[:3], labels[:3], points[3:], labels[3:]


def test_it_learns_and_permuted_labels_permute_the_answers():
    paddle.seed(0)
    learner = LSTMLearner(nn.Linear(16, 16), n_way=3, features=16, hidden=64)
    optimizer = paddle.optimizer.Adam(0.003, parameters=learner.parameters())
    for iteration in range(25):
        tasks = meta_batch(Clusters(), range(32 * iteration, 32 * iteration + 32))
        learner.meta_loss(*tasks, iteration=iteration)[0].backward()
        optimizer.step()
        optimizer.clear_grad()
    x_spt, y_spt, x_qry, y_qry = meta_batch(Clusters(), range(10**6, 10**6 + 100))
    answers = learner.predict(x_spt, y_spt, x_qry).argmax(axis=-1)
    assert (answers == y_qry).mean() > 0.9  # chance is a third
    names = np.array([2, 0, 1])
    renamed = learner.predict(x_spt, names[y_spt], x_qry).argmax(axis=-1)
    assert (renamed == names[y_qry]).mean() > 0.9 and (renamed == names[answers]).mean() > 0.9


def test_it_begins_as_a_memory():
    """Fresh weights answer about as well as the direction that is nearest in the embedding."""
    paddle.seed(0)
    net = nn.Linear(16, 16)
    learner = LSTMLearner(net, n_way=3, features=16, hidden=3 * 2 * 40)
    tasks = meta_batch(Clusters(), range(100))
    x_spt, y_spt, x_qry, y_qry = tasks
    embeddings = [net(paddle.to_tensor(x)).numpy() for x in (x_qry, x_spt)]
    alike = np.einsum("tqf,tsf->tqs", *(e / np.linalg.norm(e, axis=2, keepdims=True) for e in embeddings))
    expected = (alike.argmax(axis=2) == y_qry).mean()
    found = (learner.predict(x_spt, y_spt, x_qry).argmax(axis=2) == y_qry).mean()
    assert expected > 0.9 and found > expected - 0.1


def test_labels_without_a_place_and_embeddings_of_another_size_are_refused():
    learner = small()
    x_spt, y_spt, x_qry, y_qry = (a[0] for a in episode(np.random.RandomState(0)))
    with pytest.raises(ValueError, match="labels must be 0 to 2, not up to 3"):
        learner.predict(x_spt, y_spt + 1, x_qry)
    with pytest.raises(ValueError, match="labels must be 0 to 2, not up to 3"):
        learner.meta_loss(x_spt, y_spt, x_qry, y_qry + 1)
    with pytest.raises(ValueError, match="embeddings must have 6 numbers, not 4"):
        LSTMLearner(nn.Linear(5, 4), n_way=3, features=6).predict(x_spt, y_spt, x_qry)
    with pytest.raises(ValueError, match="hidden must be at least 1, not 0"):
        small(hidden=0)


def test_weights_moments_and_population_are_kept(tmp_path):
    """The learner's own parts are in state_dict, in the files and in the meta-optimizer's state."""
    paddle.seed(5)

    def make():
        return LSTMLearner(Conv4(width=4, image_size=16), n_way=3, features=4, hidden=6)

    first, second = make(), make()
    task = [
        a.astype(np.float32 if a.dtype == float else np.int64)
        for a in episode(np.random.RandomState(0), shape=(1, 16, 16))
    ]
    optimizers = [paddle.optimizer.Adam(0.01, parameters=learner.parameters()) for learner in (first, second)]
    first.settle(*task)
    first.meta_loss(*task)[0].backward()
    optimizers[0].step()
    optimizers[0].clear_grad()
    state = optimizer_state(optimizers[0], first)
    assert {"lstm.weight_ih/moment1", "readout.bias/moment2", "block1.conv_weight/moment1"} <= set(state)
    path = str(tmp_path / checkpoint.WEIGHTS)
    paddle.save(first.state_dict(), path)
    load_weights(second, path)
    set_optimizer_state(optimizers[1], second, state, "state")
    for learner, optimizer in zip((first, second), optimizers):
        learner.meta_loss(*task, iteration=1)[0].backward()
        optimizer.step()
    for name, tensor in first.state_dict().items():
        assert (tensor.numpy() == second.state_dict()[name].numpy()).all(), name
    assert (first.predict(*task[:3]) == second.predict(*task[:3])).all()


@pytest.mark.parametrize("other_first", [True, False])
def test_weights_of_another_learner_are_refused(tmp_path, other_first):
    learners = [
        PrototypicalLearner(Conv4(width=4, image_size=16)),
        LSTMLearner(Conv4(width=4, image_size=16), n_way=3, features=4),
    ]
    source, target = learners if other_first else learners[::-1]
    path = str(tmp_path / checkpoint.WEIGHTS)
    paddle.save(source.state_dict(), path)
    with pytest.raises(UserError, match="holds the weights of another kind of network: .*lstm.weight_ih"):
        load_weights(target, path)
