"""MAML over layers that are nobody's in particular: everything the learner offers works, and is never
silently wrong."""

import resource

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn

from paddle_maml.learners.maml import MetaLearner, maml_loss
from paddle_maml.networks.functional import Functional
from paddle_maml.networks.twice_differentiable import twice_differentiable
from paddle_maml.objectives import CrossEntropy, MeanSquare


def tasks(*shape, n_way=3, count=2, k_query=4, seed=0):
    """Support and query sets of random inputs, as `meta_batch` has them, float64."""
    random = np.random.RandomState(seed)
    arrays = []
    for shots in (2, k_query):
        labels = np.tile(np.repeat(np.arange(n_way), shots), (count, 1))
        arrays += [random.standard_normal((count, n_way * shots, *shape)), labels]
    return arrays


def perceptron():
    paddle.seed(1)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def convolutional():
    paddle.seed(1)
    layers = (
        nn.Conv2D(1, 4, 3, padding=1),
        nn.BatchNorm2D(4),
        nn.ReLU(),
        nn.MaxPool2D(2),
        nn.Flatten(),
        nn.Linear(64, 3),
    )
    return nn.Sequential(*layers)


def gradients(learner, arrays, **options):
    loss, _ = learner.meta_loss(*arrays, **options)
    loss.backward()
    result = [None if p.grad is None else p.grad.numpy() for p in learner.parameters()]
    learner.clear_gradients()
    return float(loss), result


def plain_gradients(layer, arrays, steps, rate, order):
    """The meta-gradient by `maml_loss`, through the unrolled graph of each task."""
    network, objective = Functional(layer), CrossEntropy()

    def loss(theta, x, y):
        x, y = paddle.to_tensor(x).unsqueeze(0), paddle.to_tensor(y).unsqueeze(0)
        return objective.loss(network.outputs(x, theta), objective.targets(y)).sum()

    losses = [
        maml_loss(loss, network.initial(1), task[:2], task[2:], steps, rate, order) for task in zip(*arrays)
    ]
    mean = sum(losses) / len(losses)
    mean.backward()
    result = [p.grad.numpy() for p in layer.parameters() if not p.stop_gradient]
    layer.clear_gradients()
    return float(mean), result


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(
    "make, shape", [(perceptron, (4,)), (lambda: twice_differentiable(convolutional()), (1, 8, 8))]
)
def test_the_meta_gradient_is_that_of_the_unrolled_graph(float64, make, shape, order):
    layer, arrays = make(), tasks(*shape)
    before = {name: tensor.numpy().copy() for name, tensor in layer.state_dict().items()}
    learner = MetaLearner(layer, inner_steps=3, inner_lr=0.1, order=order)
    (loss, ours), (expected_loss, expected) = (
        gradients(learner, arrays),
        plain_gradients(layer, arrays, 3, 0.1, order),
    )
    assert loss == pytest.approx(expected_loss, rel=1e-12)
    for a, b in zip([g for g in ours if g is not None], expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9 * np.abs(b).max())
    for name, tensor in layer.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), before[name])


@pytest.mark.parametrize(
    "options",
    [
        {"order": 1},
        {"learn_inner_lr": True},
        {"adapted": "head"},
        {"adapted": lambda name: name.startswith("0.")},
        {"hessian": "difference"},
        {"chunk": 2},
    ],
)
def test_everything_the_learner_offers(options):
    """Some meta-steps on the same tasks lower their loss, in float32."""
    arrays = [array.astype("float32") if array.dtype == float else array for array in tasks(4)]
    layer = perceptron()
    learner = MetaLearner(layer, inner_steps=2, inner_lr=0.1, **options)
    optimizer, losses = paddle.optimizer.Adam(0.01, parameters=learner.parameters()), []
    for _ in range(25):
        loss, _ = learner.meta_loss(*arrays, step_weights=[0.0, 0.3, 0.7])
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        losses.append(float(loss))
    assert losses[-1] < 0.85 * losses[0]
    adapted = learner.adapt(*arrays[:2])
    changed = [np.abs(a.numpy() - p.numpy()).max() > 0 for a, p in zip(adapted, layer.parameters())]
    wanted = {"head": [False, False, True, True]}.get(options.get("adapted"), [True] * 4)
    assert changed == (wanted if isinstance(options.get("adapted", ""), str) else [True, True, False, False])
    logits = learner.predict(*arrays[:3])
    np.testing.assert_allclose(logits, learner.outputs(arrays[2], adapted).numpy(), rtol=1e-4, atol=1e-5)
    accuracies, _ = learner.finetune(*arrays)
    np.testing.assert_allclose((logits.argmax(-1) == arrays[3]).mean(axis=1), accuracies[:, -1])


def test_differences_are_near_the_exact_product(float64):
    """`hessian="difference"`: within 1e-6 of the exact one in float64."""
    layer, arrays = twice_differentiable(convolutional()), tasks(1, 8, 8)
    found = {}
    for hessian in ("exact", "difference"):
        _, found[hessian] = gradients(
            MetaLearner(layer, inner_steps=3, inner_lr=0.1, hessian=hessian), arrays
        )
    _, first_order = gradients(MetaLearner(layer, inner_steps=3, inner_lr=0.1, order=1), arrays)
    moved = False
    whole = max(np.linalg.norm(exact) for exact in found["exact"] if exact is not None)
    for exact, near, first in zip(found["exact"], found["difference"], first_order):
        if exact is not None:
            assert np.linalg.norm(near - exact) <= 1e-6 * max(np.linalg.norm(exact), 1e-3 * whole)
            moved = moved or np.linalg.norm(exact - first) > 1e-2 * np.linalg.norm(exact)
    assert moved


@pytest.mark.parametrize(
    "make, name",
    [
        (convolutional, r"0 \(Conv2D\)"),
        (
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.LayerNorm(8), nn.Linear(8, 3)),
            r"2 \(LayerNorm\)|0 \(Flatten\)",
        ),
    ],
)
def test_a_layer_without_second_derivatives_is_refused_by_name(float64, make, name):
    with pytest.raises(ValueError, match=f"({name}).*twice_differentiable"):
        MetaLearner(make(), order=2).meta_loss(*tasks(1, 8, 8))
    MetaLearner(make(), order=1).meta_loss(*tasks(1, 8, 8))  # needs none


class Last(nn.Layer):
    """A linear layer on maps of one pixel."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        return self.linear(x.reshape([x.shape[0], -1]))


def test_what_paddle_gets_wrong_is_refused_by_name(float64):
    """Stock batch norm under Paddle's composite gradients: per cents off, without a word."""
    paddle.seed(2)
    layer = nn.Sequential(
        twice_differentiable(nn.Conv2D(2, 4, 3)),
        nn.BatchNorm2D(4),
        nn.Tanh(),
        nn.AdaptiveAvgPool2D(1),
        Last(),
    )
    paddle.base.core.set_prim_eager_enabled(True)
    try:
        with pytest.raises(ValueError, match=r"second derivatives of 1 \(BatchNorm2D\) are wrong by"):
            MetaLearner(layer, order=2).meta_loss(*tasks(2, 6, 6))
    finally:
        paddle.base.core.set_prim_eager_enabled(False)


def test_a_network_of_many_kinks_in_float32_is_trusted_and_differences_are_near():
    """Both compute their differences in float64, where steps are short enough to cross no kink."""
    layer, arrays = (
        twice_differentiable(convolutional()),
        [a.astype("float32") if a.dtype == float else a for a in tasks(1, 8, 8)],
    )
    found = {}
    for hessian in ("exact", "difference"):
        _, found[hessian] = gradients(
            MetaLearner(layer, inner_steps=3, inner_lr=0.1, hessian=hessian), arrays
        )
    whole = max(np.linalg.norm(exact) for exact in found["exact"] if exact is not None)
    for exact, near in zip(found["exact"], found["difference"]):
        if exact is not None:
            assert near.dtype == np.float32
            assert np.linalg.norm(near - exact) <= 1e-4 * max(np.linalg.norm(exact), 0.01 * whole)


@pytest.mark.slow
def test_resnet18_of_first_order_trains_and_of_second_is_refused_by_name():
    paddle.seed(6)
    net = paddle.vision.models.resnet18(num_classes=5)
    random, arrays = np.random.RandomState(0), []
    for _ in range(2):
        arrays += [random.standard_normal((2, 5, 3, 84, 84)).astype("float32"), np.tile(np.arange(5), (2, 1))]
    learner = MetaLearner(net, order=1, inner_steps=1, inner_lr=0.01)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    losses = [float(learner(*arrays)[1][0]) for _ in range(2)]
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"peak memory of resnet18, two tasks of 5 + 5 images of 3x84x84: {grown:.0f} MiB more than before")
    assert losses[1] < losses[0] and grown < 1024
    with pytest.raises(ValueError, match=r"second derivatives of conv1 \(Conv2D\) are"):
        MetaLearner(net, order=2).meta_loss(*arrays)
    # Its own forward calls paddle.flatten, which has none.
    with pytest.raises(ValueError, match="of the forward of ResNet itself are missing"):
        MetaLearner(twice_differentiable(net), order=2).meta_loss(*arrays)


class OwnMaximum(nn.Layer):
    """A user's layer that calls what has no second derivative."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        return F.softmax(self.linear(x))


def test_a_users_own_forward_is_named(float64):
    with pytest.raises(ValueError, match="of the forward of OwnMaximum itself are missing"):
        MetaLearner(OwnMaximum(), order=2).meta_loss(*tasks(4))
    nested = nn.Sequential(nn.Linear(4, 4), OwnMaximum())
    with pytest.raises(ValueError, match=r"of 1 \(OwnMaximum\)"):
        MetaLearner(nested, order=2).meta_loss(*tasks(4))
    MetaLearner(nested, order=2, hessian="difference").meta_loss(*tasks(4))


class Reader(nn.Layer):
    """The fused LSTM, which has no second derivative."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(3, 5)
        self.linear = nn.Linear(5, 3)

    def forward(self, x):
        return self.linear(self.lstm(x)[0][:, -1])


def test_the_fused_lstm_by_differences(float64):
    paddle.seed(3)
    layer, arrays = Reader(), tasks(6, 3)
    with pytest.raises(ValueError, match=r"lstm \(LSTM\)"):
        MetaLearner(layer, order=2).meta_loss(*arrays)
    _, ours = gradients(MetaLearner(layer, inner_steps=2, inner_lr=0.5, hessian="difference"), arrays)
    for number, parameter in enumerate(layer.parameters()):  # against differences of the meta-loss itself
        direction = ours[number] / np.linalg.norm(ours[number])
        values, old = [], parameter.numpy().copy()
        for sign in (1, -1):
            parameter.set_value(old + sign * 1e-5 * direction)
            values.append(
                float(MetaLearner(layer, inner_steps=2, inner_lr=0.5, order=1).meta_loss(*arrays)[0])
            )
        parameter.set_value(old)
        assert (values[0] - values[1]) / 2e-5 == pytest.approx(np.linalg.norm(ours[number]), rel=1e-5)


def test_dropout_draws_the_same_on_the_way_back(float64):
    """With more inner steps than graphs are kept, the gradient of the early ones is made again."""
    paddle.seed(4)
    layer = twice_differentiable(
        nn.Sequential(nn.Linear(4, 20), nn.Tanh(), nn.Dropout(0.5), nn.Linear(20, 3))
    )
    arrays = tasks(4, count=1)
    learner = MetaLearner(layer, inner_steps=4, inner_lr=0.2, order=2)
    learner.meta_loss(*arrays)  # holds a product against differences, which draws too
    paddle.seed(7)
    _, ours = gradients(learner, arrays)
    paddle.seed(7)
    _, expected = plain_gradients(layer, arrays, 4, 0.2, 2)
    for a, b in zip(ours, expected):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10)


def regression(seed=0, count=2):
    random = np.random.RandomState(seed)
    arrays = []
    for number in (5, 7):
        x = random.standard_normal((count, number, 2))
        arrays += [x, x.sum(axis=-1, keepdims=True) + 0.1 * random.standard_normal((count, number, 1))]
    return arrays


@pytest.mark.parametrize(
    "loss", ["mean-square", MeanSquare(), lambda outputs, y: ((outputs - y) * (outputs - y)).mean()]
)
def test_any_loss(float64, loss):
    paddle.seed(5)
    layer = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
    learner = MetaLearner(layer, inner_steps=2, inner_lr=0.1, loss=loss)
    loss, found = gradients(learner, regression())
    assert loss == pytest.approx(learner.finetune(*regression())[1][:, -1].mean())
    x_spt, y_spt, x_qry, y_qry = (array[0] for array in regression())
    outputs = learner.predict(x_spt, y_spt, x_qry)
    assert ((outputs - y_qry) ** 2).mean() == pytest.approx(
        learner.finetune(x_spt, y_spt, x_qry, y_qry)[0][-1]
    )
    for number, parameter in enumerate(layer.parameters()):
        direction, old, values = found[number] / np.linalg.norm(found[number]), parameter.numpy().copy(), []
        for sign in (1, -1):
            parameter.set_value(old + sign * 1e-6 * direction)
            values.append(float(learner.meta_loss(*regression())[0]))
        parameter.set_value(old)
        assert (values[0] - values[1]) / 2e-6 == pytest.approx(np.linalg.norm(found[number]), rel=1e-6)


@pytest.mark.parametrize(
    "loss, arrays, message",
    [
        ("mean-square", tasks(4), "must be floating point"),
        ("cross-entropy", regression(), "do not belong together"),
        (
            "mean-square",
            [a.repeat(2, -1) if i % 2 else a for i, a in enumerate(regression())],
            "targets shaped as the outputs",
        ),
        (
            lambda outputs, y: outputs - outputs,
            regression(),
            r"a scalar for each task, not a tensor of shape \(5, 1\)",
        ),
        (lambda outputs, y: 3.0, regression(), "a scalar for each task, not float"),
        (
            lambda outputs, y: outputs.sum() * float("nan"),
            regression(),
            "the loss of a task is nan, not a finite number",
        ),
        ("hinge", regression(), "loss must be one of cross-entropy, mean-square"),
    ],
)
def test_losses_and_targets_that_do_not_suit_are_refused(float64, loss, arrays, message):
    layer = nn.Sequential(
        nn.Linear(arrays[0].shape[-1], 4), nn.Linear(4, 3 if arrays[0].shape[-1] == 4 else 1)
    )
    with pytest.raises(ValueError, match=message):
        MetaLearner(layer, loss=loss, inner_steps=1).meta_loss(*arrays)


def test_a_loss_without_second_derivatives_is_refused(float64):
    with pytest.raises(ValueError, match="second derivatives of the loss are missing"):
        MetaLearner(perceptron(), loss=F.cross_entropy, order=2).meta_loss(*tasks(4))


def test_labels_beyond_the_outputs_are_refused(float64):
    arrays = tasks(4)
    arrays[3] = arrays[3] + 1
    with pytest.raises(ValueError, match="labels must be 0 to 2, not up to 3"):
        MetaLearner(perceptron()).meta_loss(*arrays)
    arrays[3] = arrays[3] - 2
    with pytest.raises(ValueError, match="labels must be 0 and above, not -1"):
        MetaLearner(perceptron()).meta_loss(*arrays)


@pytest.mark.parametrize(
    "adapted, message",
    [
        (
            lambda name: name == "nothing",
            "adapted chooses none of the parameters 0.weight, 0.bias, 2.weight, 2.bias",
        ),
        (3, "adapted must be"),
    ],
)
def test_an_adaptation_of_nothing_is_refused(adapted, message):
    with pytest.raises(ValueError, match=message):
        MetaLearner(perceptron(), adapted=adapted)
