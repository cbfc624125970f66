"""Reptile: its step by hand and against PyTorch, its mini-batches, and what becomes of Adam's second
moment."""

import numpy as np
import paddle
import pytest
import reference_torch as reference
from paddle import nn

from paddle_maml import MAML, ReptileLearner
from paddle_maml.learners.reptile import BETA2, mini_batches


class TwoNumbers(nn.Layer):
    """Logits (u * x, v * x^2) for an input that is one number x; both parameters begin at 0."""

    def __init__(self):
        super().__init__()
        self.u = self.create_parameter([1], default_initializer=nn.initializer.Constant(0.0))
        self.v = self.create_parameter([1], default_initializer=nn.initializer.Constant(0.0))

    def forward(self, x):
        return paddle.concat([self.u * x, self.v * x * x], axis=-1)


# One task: x = 1 has label 0, x = 2 has label 1.
TASK = (np.full((1, 1, 1), 1.0), np.array([[0]]), np.full((1, 1, 1), 2.0), np.array([[1]]))


def gradient_by_hand(u, v):
    """Of the mean of both inputs' losses. With q the probability of label 0: d loss / du = (q - [label 0]) *
    x and d loss / dv = ([label 0] - q) * x^2, because the probability of label 1 is 1 - q."""
    q1, q2 = 1 / (1 + np.exp(v - u)), 1 / (1 + np.exp(4 * v - 2 * u))
    return np.array([(q1 - 1) * 1 + q2 * 2, (1 - q1) * 1 - q2 * 4]) / 2


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_two_parameters_by_hand(float64, optimizer):
    """Two inner steps on the whole task."""
    rate, theta = 0.3, np.zeros(2)
    # At 0 all probabilities are 1/2: ((-1/2 + 1) / 2, (1/2 - 2) / 2).
    np.testing.assert_allclose(gradient_by_hand(0.0, 0.0), [0.25, -0.75])
    first = gradient_by_hand(*theta)
    # The first step of Adam has the mean square of one gradient: its sign is left.
    theta = theta - rate * (first if optimizer == "sgd" else np.sign(first))
    loss = np.log(1 + np.exp(theta[1] - theta[0])) + np.log(1 + np.exp(2 * theta[0] - 4 * theta[1]))
    second = gradient_by_hand(*theta)
    # (beta2 * (1 - beta2) * first^2 + (1 - beta2) * second^2) / (1 - beta2^2)
    mean_square = (BETA2 * first**2 + second**2) / (1 + BETA2)
    theta = theta - rate * (second if optimizer == "sgd" else second / np.sqrt(mean_square))

    learner = ReptileLearner(TwoNumbers(), inner_steps=2, inner_lr=rate, inner_optimizer=optimizer)
    ours, accuracy = learner.meta_loss(*TASK)
    ours.backward()
    assert ours.item() == pytest.approx(loss / 2, rel=1e-6)
    assert accuracy.item() in (0.0, 0.5, 1.0)
    found = [learner.net.u.grad.item(), learner.net.v.grad.item()]
    np.testing.assert_allclose(found, -theta, rtol=1e-6)
    if optimizer == "adam":
        moments = -learner.second_moment.grad.numpy()
        np.testing.assert_allclose(moments[:2], mean_square * (1 - BETA2**2), rtol=1e-6)
        assert moments[2] == pytest.approx(1 - BETA2**2)
    else:
        assert learner.second_moment is None


def small_layer():
    paddle.seed(3)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def episodes(seed, tasks=2):
    random = np.random.RandomState(seed)
    labels = [np.tile(np.repeat(np.arange(3), shots), [tasks, 1]) for shots in (2, 3)]
    return [a for y in labels for a in (random.standard_normal([*y.shape, 6]), y)]


def torch_reptile(torch, params, batches, episode, optimizer, rate, moment, steps_before):
    """theta_K and the second moments of each task, by PyTorch's optimizers; theirs begins as is given."""
    ends, moments = [], []
    for task in range(len(episode[0])):
        x, y = (torch.tensor(np.concatenate([episode[of][task], episode[of + 2][task]])) for of in (0, 1))
        theta = [torch.tensor(p, requires_grad=True) for p in params]
        if optimizer == "sgd":
            inner = torch.optim.SGD(theta, lr=rate)
        else:
            inner = torch.optim.Adam(theta, lr=rate, betas=(0.0, 0.999))
            for p, square in zip(theta, moment):
                inner.state[p] = {
                    "step": torch.tensor(float(steps_before)),
                    "exp_avg": torch.zeros_like(p),
                    "exp_avg_sq": torch.tensor(square),
                }
        for places in batches:
            inner.zero_grad()
            logits = torch.tanh(x[places] @ theta[0] + theta[1]) @ theta[2] + theta[3]
            torch.nn.functional.cross_entropy(logits, y[places]).backward()
            inner.step()
        ends.append([p.detach().numpy() for p in theta])
        if optimizer == "adam":
            moments.append([inner.state[p]["exp_avg_sq"].numpy() for p in theta])
    mean = lambda of_tasks: [np.mean(tensors, axis=0) for tensors in zip(*of_tasks)]
    return mean(ends), mean(moments)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_two_meta_iterations_are_pytorchs(float64, optimizer):
    """Mini-batches of 4 of 15 inputs in 5 steps; the second moment goes on where the tasks' mean left it."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    rate, steps = 0.05, 5
    learner = ReptileLearner(
        small_layer(), inner_steps=steps, inner_lr=rate, inner_optimizer=optimizer, inner_batch=4
    )
    params = [p.numpy().copy() for p in learner.net.parameters()]
    moment = [np.zeros_like(p) for p in params]
    meta_optimizer = paddle.optimizer.SGD(1.0, parameters=learner.parameters())
    for iteration in range(2):
        episode = episodes(iteration)
        loss, _ = learner.meta_loss(*episode, draws=np.random.RandomState([9, iteration]))
        loss.backward()
        meta_optimizer.step()
        meta_optimizer.clear_grad()
        batches = list(mini_batches(np.random.RandomState([9, iteration]), 15, 4, steps))
        params, moment = torch_reptile(
            torch, params, batches, episode, optimizer, rate, moment, steps * iteration
        )
        for ours, expected in zip(learner.net.parameters(), params):
            np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-9, atol=1e-12)
        if optimizer == "adam":
            expected = np.concatenate(
                [square.ravel() for square in moment] + [[1 - 0.999 ** (steps * (iteration + 1))]]
            )
            np.testing.assert_allclose(learner.second_moment.numpy(), expected, rtol=1e-9, atol=1e-18)


def test_mini_batches_go_through_all_inputs_round_by_round():
    batches = list(mini_batches(np.random.RandomState(1), 10, 4, 5))
    assert [len(places) for places in batches] == [4] * 5
    order = np.concatenate(batches).tolist()
    assert sorted(order[:10]) == sorted(order[10:]) == list(range(10)) and order[:10] != order[10:]
    again, others = (list(mini_batches(np.random.RandomState(seed), 10, 4, 5)) for seed in (1, 2))
    np.testing.assert_array_equal(again, batches)
    assert (np.array(others) != batches).any()
    for size in (None, 3, 7):  # all, and all where there are fewer
        assert [sorted(places) for places in mini_batches(np.random.RandomState(0), 3, size, 2)] == [
            [0, 1, 2]
        ] * 2


def image_learner(**options):
    paddle.seed(5)
    return ReptileLearner(MAML(n_way=reference.N_WAY, width=4), inner_lr=0.05, **options)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_tasks_side_by_side_change_nothing(float64, optimizer):
    gradients = []
    for chunk in (1, 2, 8):
        learner = image_learner(inner_optimizer=optimizer, inner_batch=6, inner_steps=3, chunk=chunk)
        loss, score = learner.meta_loss(*reference.make_episodes(), draws=np.random.RandomState(0))
        loss.backward()
        gradients.append([loss.item(), score.item(), *(p.grad.numpy() for p in learner.parameters())])
    for others in gradients[1:]:
        for ours, theirs in zip(gradients[0], others):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-12)


def test_adaptation_is_the_same_each_time_and_changes_no_weight():
    learner = image_learner(inner_batch=6, test_inner_batch=3, inner_steps=2)
    arrays = [a.astype(np.float32) if a.dtype == np.float64 else a for a in reference.make_episodes()]
    learner(*arrays)  # so that there is a second moment
    before = [p.numpy().copy() for p in learner.parameters()]
    scores, losses = learner.finetune(*arrays, steps=7)
    assert scores.shape == losses.shape == (3, 8) and learner.transductive
    logits = learner.predict(*arrays[:3], steps=7)
    np.testing.assert_allclose((logits.argmax(-1) == arrays[3]).mean(axis=1), scores[:, -1])
    np.testing.assert_array_equal(logits, learner.predict(*arrays[:3], steps=7))
    one = learner.predict(*arrays[:3], steps=7, statistics="one")
    assert np.abs(one - logits).max() > 1e-3
    # What batch norm knows of one image does not depend on the others.
    alone = learner.predict(*arrays[:2], arrays[2][:, :1], steps=7, statistics="one")
    np.testing.assert_allclose(alone, one[:, :1], rtol=1e-3, atol=1e-4)
    params = learner.adapt(arrays[0][0], arrays[1][0], steps=7)
    np.testing.assert_allclose(learner.outputs(arrays[2][0], params).numpy(), logits[0], rtol=1e-3, atol=1e-3)
    for a, b in zip(before, learner.parameters()):
        np.testing.assert_array_equal(a, b.numpy())


def test_calling_it_moves_theta_to_the_mean_of_the_trained(float64):
    learner = ReptileLearner(small_layer(), inner_optimizer="sgd", inner_lr=0.1, inner_steps=3)
    x_spt, y_spt, x_qry, y_qry = episodes(4)
    whole = np.concatenate([x_spt, x_qry], axis=1), np.concatenate([y_spt, y_qry], axis=1)
    expected = [p.numpy().mean(axis=0) for p in learner.adapt(*whole)]  # a step takes all, as in training
    learner(x_spt, y_spt, x_qry, y_qry)
    for ours, mean in zip(learner.net.parameters(), expected):
        np.testing.assert_allclose(ours.numpy(), mean, rtol=1e-9, atol=1e-12)


def test_mini_batches_are_other_ones_in_each_call_unless_seeded(float64):
    def losses(seed):
        learner = ReptileLearner(small_layer(), inner_batch=4, inner_steps=1)
        paddle.seed(seed)
        return [learner.meta_loss(*episodes(0))[0].item() for _ in range(3)]

    assert len(set(losses(1))) == 3 and losses(1) == losses(1) != losses(2)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_frozen_parameters_stay(float64, optimizer):
    layer = small_layer()
    layer[0].weight.stop_gradient = True
    learner = ReptileLearner(layer, inner_optimizer=optimizer, inner_lr=0.1)
    frozen, free = layer[0].weight.numpy().copy(), layer[2].weight.numpy().copy()
    learner(*episodes(0))
    np.testing.assert_array_equal(layer[0].weight.numpy(), frozen)
    assert np.abs(layer[2].weight.numpy() - free).max() > 1e-3
    image = image_learner(inner_optimizer=optimizer)
    image.net.block1.conv_weight.stop_gradient = True
    frozen = image.net.block1.conv_weight.numpy().copy()
    image(*reference.make_episodes())
    np.testing.assert_array_equal(image.net.block1.conv_weight.numpy(), frozen)


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"inner_optimizer": "momentum"}, "inner_optimizer must be 'adam' or 'sgd', not 'momentum'"),
        ({"inner_batch": 0}, "inner_batch must be at least 1, not 0"),
        ({"test_inner_batch": 0}, "test_inner_batch must be at least 1, not 0"),
        ({"inner_steps": 0}, "inner_steps must be at least 1"),
    ],
)
def test_wrong_options_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        ReptileLearner(small_layer(), **options)


def test_it_learns():
    """From one character of each class to others: better than the weights that it begins with."""
    from paddle_maml import EpisodeBuilder, draw_synthetic, meta_batch

    paddle.seed(0)
    learner = ReptileLearner(MAML(n_way=3, width=16), inner_lr=0.003, inner_batch=6, inner_steps=4)
    builder = EpisodeBuilder(draw_synthetic(), 3, 1, 7, seed=1)
    tests = meta_batch(builder, range(1000, 1020))
    before = learner.finetune(*tests, steps=8)[0][:, -1].mean()
    for step in range(40):
        learner(*meta_batch(builder, range(3 * step, 3 * step + 3)))
    assert learner.finetune(*tests, steps=8)[0][:, -1].mean() > before + 0.05
