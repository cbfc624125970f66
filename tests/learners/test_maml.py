"""The learner: a case worked by hand, and its promises to callers."""

import functools

import numpy as np
import paddle
import pytest
import reference_torch as reference

from paddle_maml import MAML, MLP, MetaLearner
from paddle_maml.learners.maml import maml_loss
from paddle_maml.networks.plain_conv4 import plain_conv4


def small_learner(**options):
    paddle.seed(5)
    return MetaLearner(MAML(n_way=reference.N_WAY, width=4), **options)


def weights(learner):
    return [p.numpy().copy() for p in learner.parameters()]


class TwoNumbers(paddle.nn.Layer):
    """A layer of two parameters that can be worked by hand: logits (u * x, v * x^2) for an input that is one
    number x."""

    def __init__(self):
        super().__init__()
        self.u = self.create_parameter([1], default_initializer=paddle.nn.initializer.Constant(0.0))
        self.v = self.create_parameter([1], default_initializer=paddle.nn.initializer.Constant(0.0))

    def forward(self, x):
        return paddle.concat([self.u * x, self.v * x * x], axis=-1)


@pytest.mark.parametrize("order", [1, 2])
def test_meta_gradient_of_two_parameters_by_hand(float64, order):
    # Support: x = 1 with label 0. At u = v = 0 both logits are 0, p = (1/2, 1/2), so d loss / du = p0 - 1 =
    # -1/2 and d loss / dv = p1 = 1/2. With rate a: u' = a/2, v' = -a/2.
    # Query: x = 2 with label 1: logits z = (2 u', 4 v') = (a, -2a), q0 = 1 / (1 + exp(-3a)).
    # Gradient at the adapted point: g_u = 2 q0, g_v = 4 (q1 - 1) = -4 q0.
    # Hessian of the support loss at 0, by (u, v): p0 p1 * [[1, -1], [-1, 1]] = 1/4 [[1, -1], [-1, 1]].
    # Second order: g - a H g, with H g = 1/4 (g_u - g_v, g_v - g_u) = (3/2 q0, -3/2 q0).
    rate = 0.4
    q0 = 1 / (1 + np.exp(-3 * rate))
    g_u, g_v = 2 * q0, -4 * q0
    if order == 2:
        g_u, g_v = g_u - rate * 1.5 * q0, g_v + rate * 1.5 * q0
    learner = MetaLearner(TwoNumbers(), inner_steps=1, inner_lr=rate, order=order)
    number = lambda value: np.full((1, 1, 1), value)
    loss, accuracy = learner.meta_loss(number(1.0), np.array([[0]]), number(2.0), np.array([[1]]))
    loss.backward()
    assert loss.item() == pytest.approx(np.log(1 + np.exp(3 * rate)))
    assert accuracy.item() == 0.0
    assert learner.net.u.grad.item() == pytest.approx(g_u, rel=1e-12)
    assert learner.net.v.grad.item() == pytest.approx(g_v, rel=1e-12)


@pytest.mark.parametrize("order", [1, 2])
def test_learned_rates_and_multi_step_loss_against_differences(float64, order):
    """The gradient by the rates, and with weighted losses at all steps by the weights, along a direction."""
    learner = small_learner(inner_steps=3, inner_lr=0.1, order=order, learn_inner_lr=True)
    episodes, step_weights = reference.make_episodes(), [0.1, 0.2, 0.3, 0.4]
    loss, _ = learner.meta_loss(*episodes, step_weights=step_weights)
    loss.backward()
    random = np.random.RandomState(1)

    def slope(parameters, rows=slice(None)):
        """Central difference of the loss along a random direction, and the same from the gradient."""
        directions = [random.standard_normal(p.shape) * 1e-7 for p in parameters]
        for direction in directions:
            kept = direction[rows].copy()
            direction[...] = 0
            direction[rows] = kept
        values = [p.numpy().copy() for p in parameters]
        losses = []
        for sign in (1, -1):
            for p, v, d in zip(parameters, values, directions):
                p.set_value(v + sign * d)
            losses.append(learner.meta_loss(*episodes, step_weights=step_weights)[0].item())
        for p, v in zip(parameters, values):
            p.set_value(v)
        return (losses[0] - losses[1]) / 2, sum(
            (p.grad.numpy() * d).sum() for p, d in zip(parameters, directions)
        )

    # First order leaves out what earlier steps do to later gradients, so only the last step's rates are
    # exact.
    expected, got = slope([learner.inner_rates], slice(None) if order == 2 else slice(-1, None))
    assert abs(expected) > 1e-10
    if order == 2:
        assert got == pytest.approx(expected, rel=1e-4)
        expected, got = slope(learner.net.parameters())
    assert got == pytest.approx(expected, rel=1e-4)


def test_learned_rates_that_stay_equal_change_nothing(float64):
    fixed, learned = small_learner(order=2), small_learner(order=2, learn_inner_lr=True)
    for learner in (fixed, learned):
        loss, _ = learner.meta_loss(*reference.make_episodes())
        loss.backward()
    for a, b in zip(fixed.net.parameters(), learned.net.parameters()):
        np.testing.assert_array_equal(a.grad.numpy(), b.grad.numpy())


@pytest.mark.parametrize("learn_inner_lr", [False, True])
def test_the_head_alone_is_adapted_on_request(float64, learn_inner_lr):
    """ANIL: the body stays, its meta-gradient does not vanish, and the loss falls along it."""
    learner = small_learner(order=2, inner_steps=2, adapted="head", learn_inner_lr=learn_inner_lr)
    episodes = reference.make_episodes()
    adapted = learner.adapt(*episodes[:2])
    for old, new in list(zip(learner.net.parameters(), adapted))[:-2]:
        np.testing.assert_array_equal(new.numpy(), np.broadcast_to(old.numpy(), new.shape))
    assert np.abs(adapted[-2].numpy() - learner.net.linear.weight.numpy()).max() > 1e-3
    loss, _ = learner.meta_loss(*episodes)
    loss.backward()
    weight = learner.net.block2.conv_weight
    gradient, step = weight.grad.numpy(), 1e-6
    direction = gradient / np.linalg.norm(gradient)
    old, losses = weight.numpy().copy(), []
    for sign in (1, -1):
        weight.set_value(old + sign * step * direction)
        losses.append(learner.meta_loss(*episodes)[0].item())
    assert np.linalg.norm(gradient) > 1e-4
    assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(np.linalg.norm(gradient), rel=1e-4)
    if learn_inner_lr:
        rates = learner.inner_rates.grad.numpy()
        assert (rates[:, :-2] == 0).all() and (rates[:, -2:] != 0).all()


@pytest.mark.parametrize("multi_step", [False, True])
@pytest.mark.parametrize("learn_inner_lr", [False, True])
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("kind", ["conv4", "mlp"])
def test_what_the_head_gets_is_computed_once_and_changes_nothing(
    float64, monkeypatch, kind, order, learn_inner_lr, multi_step
):
    """Adapting the head alone on the support set's embedding is adapting it on the images."""
    episodes, results, calls = reference.make_episodes(), [], []

    def counting(own, function, *given):
        own.append(1)
        return function(*given)

    for embeds in (True, False):
        calls.append([])
        paddle.seed(5)
        net = MAML(n_way=5, width=4) if kind == "conv4" else MLP(784, (12, 8), 5)
        learner = MetaLearner(
            net, order=order, inner_steps=3, inner_lr=0.4, adapted="head", learn_inner_lr=learn_inner_lr
        )
        if not embeds:
            monkeypatch.setattr(MetaLearner, "_head_alone", lambda learner: False)
        name = "_embeddings" if kind == "conv4" else "_run"
        with monkeypatch.context() as counted:
            body = functools.partial(counting, calls[-1], getattr(type(net), name))
            counted.setattr(net, name, functools.partial(body, net))
            learner.adapt(*episodes[:2])
        loss, score = learner.meta_loss(*episodes, step_weights=[0.1, 0.2, 0.3, 0.4] if multi_step else None)
        loss.backward()
        gradients = [p.grad.numpy() for p in learner.parameters() if p.grad is not None]
        adapted = [p.numpy() for p in learner.adapt(*episodes[:2])]
        results.append([loss.numpy(), score.numpy(), *gradients, *adapted, *learner.finetune(*episodes)])
    assert [len(own) for own in calls] == [1, 3]  # passes through the body
    assert len(results[0]) == len(results[1])
    for ours, expected in zip(*results):
        np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-12)


def test_adapt_is_gradient_descent_on_the_support_loss(float64):
    learner = small_learner(inner_steps=2, inner_lr=0.3)
    x, y = (array[0] for array in reference.make_episodes()[:2])
    x, y = paddle.to_tensor(x), paddle.to_tensor(y)
    params = list(learner.net.parameters())
    for _ in range(2):
        loss = paddle.nn.functional.cross_entropy(learner.net(x, params), y)
        gradients = paddle.grad(loss, params, allow_unused=True)
        params = [p if g is None else (p - 0.3 * g).detach() for p, g in zip(params, gradients)]
        for p in params:
            p.stop_gradient = False
    before = weights(learner)
    for ours, expected in zip(learner.adapt(x, y), params):
        np.testing.assert_allclose(ours.numpy(), expected.numpy(), rtol=1e-9, atol=1e-12)
    for a, b in zip(before, weights(learner)):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("statistics", ["query", "support", "one"])
def test_what_batch_norm_knows_in_predict(float64, statistics):
    learner = small_learner(inner_steps=2, inner_lr=0.3, chunk=4)
    for parameter, array in zip(learner.net.parameters(), reference.make_parameters(4)):
        parameter.set_value(array)
    x_spt, y_spt, x_qry, _ = reference.make_episodes()
    logits = learner.predict(x_spt, y_spt, x_qry, statistics=statistics)
    for task in range(len(x_spt)):
        params = learner.adapt(x_spt[task], y_spt[task])
        support, query = paddle.to_tensor(x_spt[task]), paddle.to_tensor(x_qry[task])
        if statistics == "one":
            expected = [
                plain_conv4(image, params, statistics_of=paddle.concat([support, image]))
                for image in query.unsqueeze(1)
            ]
            expected = paddle.concat(expected)
        else:
            expected = plain_conv4(query, params, statistics_of=query if statistics == "query" else support)
        np.testing.assert_allclose(logits[task], expected.numpy(), rtol=1e-8, atol=1e-10)


def test_only_the_published_protocol_lets_query_images_depend_on_each_other():
    learner = small_learner(inner_steps=1)
    x_spt, y_spt, x_qry, _ = (
        array.astype("float32") if array.dtype == float else array for array in reference.make_episodes()
    )
    for statistics, independent in (("query", False), ("support", True), ("one", True)):
        whole, part = (
            learner.predict(x_spt, y_spt, x_qry[:, :count], statistics=statistics)[:, :3] for count in (15, 3)
        )
        assert np.allclose(whole, part, atol=1e-4) == independent
    with pytest.raises(ValueError, match="statistics must be one of"):
        learner.predict(x_spt, y_spt, x_qry, statistics="all")


def test_adapted_parameters_score_as_finetune_says(float64):
    learner = small_learner(inner_steps=3, chunk=2)
    x_spt, y_spt, x_qry, y_qry = reference.make_episodes()
    accuracies, losses = learner.finetune(x_spt, y_spt, x_qry, y_qry)
    assert accuracies.shape == losses.shape == (3, 4)
    params = learner.adapt(x_spt, y_spt)
    predicted = learner.net(paddle.to_tensor(x_qry), params).numpy().argmax(axis=-1)
    np.testing.assert_allclose((predicted == y_qry).mean(axis=1), accuracies[:, -1])
    start = learner.net(paddle.to_tensor(x_qry)).numpy().argmax(axis=-1)
    np.testing.assert_allclose((start == y_qry).mean(axis=1), accuracies[:, 0])


def test_the_last_step_scored_alone_is_that_among_all():
    learner, episodes = small_learner(inner_steps=3, chunk=2), reference.make_episodes()
    for every, alone in zip(learner.finetune(*episodes), learner.finetune(*episodes, every_step=False)):
        assert every.shape == (3, 4)
        np.testing.assert_array_equal(alone, every[:, -1:])


def test_finetune_changes_no_weight_and_meta_loss_neither():
    learner = small_learner(order=2, learn_inner_lr=True)
    before = weights(learner)
    learner.finetune(*reference.make_episodes(), steps=7)
    learner.meta_loss(*reference.make_episodes())
    for a, b in zip(before, weights(learner)):
        np.testing.assert_array_equal(a, b)


def test_calling_the_learner_is_one_meta_step():
    learner = small_learner(inner_steps=2)
    expected_accuracies, expected_losses = learner.finetune(*reference.make_episodes())
    before = weights(learner)
    accuracies, losses = learner(*reference.make_episodes(), score_steps=True)
    np.testing.assert_allclose(accuracies, expected_accuracies.mean(axis=0))
    np.testing.assert_allclose(losses, expected_losses.mean(axis=0))
    moved = [not np.array_equal(a, b) for a, b in zip(before, weights(learner))]
    assert moved[0] and moved[-1]
    [accuracy], [loss] = learner(*reference.make_episodes())
    assert loss < losses[-1] and 0 <= accuracy <= 1


def test_state_is_the_networks_and_the_rates():
    learner, other = small_learner(learn_inner_lr=True), small_learner(learn_inner_lr=True)
    assert list(learner.state_dict()) == list(learner.net.state_dict()) + ["inner_rates"]
    learner(*reference.make_episodes())
    other.set_state_dict({name: tensor.numpy() for name, tensor in learner.state_dict().items()})
    for a, b in zip(weights(learner), weights(other)):
        np.testing.assert_array_equal(a, b)
    assert list(small_learner().state_dict()) == list(learner.net.state_dict())


def test_chunks_do_not_change_the_result(float64, monkeypatch):
    results = []
    # The last has its query sets in parts of their own.
    for chunk, query_images in ((1, 150), (2, 150), (5, 150), (5, 1)):
        monkeypatch.setattr(MAML, "inputs_together", query_images)
        learner = small_learner(order=2, inner_steps=2, chunk=chunk, learn_inner_lr=True)
        scores = learner.finetune(*reference.make_episodes())
        loss, accuracy = learner.meta_loss(*reference.make_episodes(), step_weights=[0.0, 0.3, 0.7])
        loss.backward()
        results.append(
            [loss.numpy(), accuracy.numpy(), *scores, *(p.grad.numpy() for p in learner.parameters())]
        )
    assert len(set(results[0][2][:, -1])) > 1  # tasks in another order would show
    for result in results[1:]:
        for ours, first in zip(result, results[0]):
            np.testing.assert_allclose(ours, first, rtol=1e-9, atol=1e-14)


def test_a_loss_that_is_scaled_scales_the_gradient():
    learner = small_learner(order=1, inner_steps=1)
    learner.meta_loss(*reference.make_episodes())[0].backward()
    once = learner.net.linear.weight.grad.numpy().copy()
    learner.clear_gradients()
    (learner.meta_loss(*reference.make_episodes())[0] * 3.0).backward()
    np.testing.assert_allclose(learner.net.linear.weight.grad.numpy(), 3 * once, rtol=1e-5)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"inner_steps": 0}, "inner_steps must be at least 1, not 0"),
        ({"inner_lr": -0.1}, "inner_lr must be a finite number that is not negative, not -0.1"),
        ({"inner_lr": float("inf")}, "not inf"),
        ({"inner_lr": float("nan")}, "not nan"),
        ({"order": 3}, "order must be 1 or 2, not 3"),
        ({"chunk": 0}, "chunk must be at least 1, not 0"),
        (
            {"adapted": "tail"},
            "adapted must be 'all', 'head' or a function of a parameter's name, not 'tail'",
        ),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        small_learner(**options)


def test_labels_that_do_not_fit_the_images_are_refused():
    x_spt, y_spt, x_qry, y_qry = reference.make_episodes()
    with pytest.raises(ValueError, match="do not belong together"):
        small_learner().meta_loss(x_spt, y_spt[:, 1:], x_qry, y_qry)


@pytest.mark.parametrize("cut", [lambda array: array[:2], lambda array: array[0]])
def test_queries_of_other_tasks_are_refused(cut):
    x_spt, y_spt, x_qry, y_qry = reference.make_episodes()
    for call in (
        lambda: small_learner().meta_loss(x_spt, y_spt, cut(x_qry), cut(y_qry)),
        lambda: small_learner().finetune(x_spt, y_spt, cut(x_qry), cut(y_qry)),
        lambda: small_learner().predict(x_spt, y_spt, cut(x_qry)),
    ):
        with pytest.raises(ValueError, match="must be of the same tasks"):
            call()


def test_images_that_the_network_cannot_take_are_refused():
    x_spt, y_spt, x_qry, y_qry = reference.make_episodes()
    learner = small_learner()
    for wrong, message in (
        (x_spt[:, :, :, :20, :20], "images must be"),
        (np.concatenate([x_spt] * 3, axis=2), "images must be"),
        (x_spt * np.nan, "finite numbers"),
        (x_spt + np.inf, "finite numbers"),
    ):
        for call in (
            lambda wrong=wrong: learner.meta_loss(wrong, y_spt, x_qry, y_qry),
            lambda wrong=wrong: learner.meta_loss(x_qry, y_qry, wrong, y_spt),
            lambda wrong=wrong: learner.adapt(wrong[0], y_spt[0]),
            lambda wrong=wrong: learner.predict(x_qry, y_qry, wrong),
        ):
            with pytest.raises(ValueError, match=message):
                call()


def test_labels_that_are_no_whole_numbers_are_refused():
    x_spt, y_spt, x_qry, y_qry = reference.make_episodes()
    with pytest.raises(ValueError, match="labels must be whole numbers"):
        small_learner().meta_loss(x_spt, y_spt + 0.5, x_qry, y_qry)


def test_orders_and_steps_that_there_are_not_are_refused():
    learner, episodes = small_learner(), reference.make_episodes()
    with pytest.raises(ValueError, match="order must be 1 or 2, not 5"):
        learner.meta_loss(*episodes, order=5)
    with pytest.raises(ValueError, match="steps must not be negative, not -1"):
        learner.finetune(*episodes, steps=-1)


@pytest.mark.parametrize("order", [1, 2])
def test_parameters_that_are_not_finite_show_in_the_loss(order):
    """ReLU and maximum take NaN for zero, and the loss of zeros is log(n_way)."""
    learner, episodes = small_learner(order=order), reference.make_episodes()
    weight = learner.net.block3.conv_weight
    spoiled = weight.numpy()
    spoiled[0, 0, 0, 0] = np.inf
    weight.set_value(spoiled)
    assert not np.isfinite(float(learner.meta_loss(*episodes)[0]))
    assert not np.isfinite(learner.finetune(*episodes)[1]).any()


@pytest.mark.parametrize("order", [1, 2])
def test_the_plain_algorithm_gives_the_same_meta_gradient(float64, order):
    """`maml_loss`, which unrolls the graph, task by task."""
    learner, arrays = small_learner(inner_steps=3, inner_lr=0.2, order=order), reference.make_episodes()
    network, objective, losses = learner.network, learner.objective, []

    def loss(theta, x, y):
        x, y = paddle.to_tensor(x).unsqueeze(0), paddle.to_tensor(y).unsqueeze(0)
        return objective.loss(network.outputs(network.prepare(x), theta), objective.targets(y)).sum()

    for x_spt, y_spt, x_qry, y_qry in zip(*arrays):
        losses.append(maml_loss(loss, network.initial(1), (x_spt, y_spt), (x_qry, y_qry), 3, 0.2, order))
    mean = sum(losses) / len(losses)
    mean.backward()
    expected = [p.grad.numpy() for p in learner.net.parameters()]
    learner.net.clear_gradients()
    fast, _ = learner.meta_loss(*arrays)
    fast.backward()
    assert fast.item() == pytest.approx(mean.item(), rel=1e-12)
    for parameter, gradient in zip(learner.net.parameters(), expected):
        np.testing.assert_allclose(parameter.grad.numpy(), gradient, rtol=1e-8, atol=1e-12)


def test_one_task_is_answered_in_kind(float64):
    learner, arrays = small_learner(inner_steps=2), reference.make_episodes()
    of_all, of_one = learner.finetune(*arrays), learner.finetune(*(array[1] for array in arrays))
    for all_tasks, one in zip(of_all, of_one):
        assert one.shape == (3,)
        np.testing.assert_allclose(one, all_tasks[1], rtol=1e-10)
    x_spt, y_spt, x_qry, y_qry = (array[1] for array in arrays)
    logits = learner.predict(x_spt, y_spt, x_qry)
    np.testing.assert_allclose(logits, learner.predict(*arrays[:3])[1], rtol=1e-9)
    params = learner.adapt(x_spt, y_spt)
    np.testing.assert_allclose(learner.outputs(x_qry, params).numpy(), logits, rtol=1e-9)
    np.testing.assert_allclose(learner.net(paddle.to_tensor(x_qry), params).numpy(), logits, rtol=1e-9)
    loss, accuracy = learner.meta_loss(x_spt, y_spt, x_qry, y_qry)
    assert loss.item() == pytest.approx(of_one[1][-1]) and accuracy.item() == pytest.approx(of_one[0][-1])


def test_frozen_parameters_stay(float64):
    learner, arrays = small_learner(inner_steps=2), reference.make_episodes()
    frozen = learner.net.block1.norm_weight
    frozen.stop_gradient = True
    adapted = learner.adapt(*arrays[:2])
    learner(*arrays)
    np.testing.assert_array_equal(adapted[2].numpy(), np.broadcast_to(frozen.numpy(), adapted[2].shape))
    assert frozen.grad is None and np.abs(adapted[3].numpy()).max() > 0


@pytest.mark.parametrize("order", [1, 2])
def test_memory_is_given_back(order):
    """A graph that keeps itself alive would add its tensors at every call."""

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    try:
        resident()
    except OSError:
        pytest.skip("/proc is not there to read the memory from")
    learner = MetaLearner(MAML(n_way=reference.N_WAY, width=32), inner_steps=5, order=order)
    for _ in range(3):
        learner.meta_loss(*reference.make_episodes())
    before = resident()
    for _ in range(10):
        learner.meta_loss(*reference.make_episodes())
    assert resident() - before < 20e6
