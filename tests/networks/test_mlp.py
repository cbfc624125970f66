"""The perceptron for tasks side by side, against stock layers and PyTorch's second derivatives."""

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn

from paddle_maml import MLP
from paddle_maml.kernels.operators import cross_entropy

TASKS, IMAGES, FEATURES, N_OUTPUTS = 3, 7, 6, 4
STEP = 1e-5

both = pytest.mark.parametrize("batch_norm", [True, False])


def network(batch_norm, seed=0, **sizes):
    """A small network whose parameters, biases too, are far from where they begin."""
    net = MLP(
        **{"in_features": FEATURES, "hidden": (9, 5), "n_outputs": N_OUTPUTS, **sizes}, batch_norm=batch_norm
    )
    random = np.random.RandomState(seed)
    for parameter in net.parameters():
        parameter.set_value(random.standard_normal(parameter.shape).astype(str(parameter.numpy().dtype)))
    return net


def task_parameters(net, seed=1):
    """Arrays as `parameters()` with a leading T, other ones for each task."""
    random = np.random.RandomState(seed)
    return [random.standard_normal([TASKS, *p.shape]) for p in net.parameters()]


def inputs(*shape, seed=2):
    return np.random.RandomState(seed).standard_normal(shape)


def trainable(layer):
    """Its parameters without batch norm's running moments, which Paddle counts among them."""
    return [parameter for parameter in layer.parameters() if not parameter.stop_gradient]


def stock(net, params):
    """The same network of stock layers, for one task."""
    layers, sizes = [], [net.in_features, *net.hidden, net.n_outputs]
    for before, after in zip(sizes, sizes[1:]):
        layers += [nn.Linear(before, after), nn.BatchNorm1D(after), nn.ReLU()]
    layers = [layer for layer in layers[:-2] if net.batch_norm or not isinstance(layer, nn.BatchNorm1D)]
    twin = nn.Sequential(nn.Flatten(), *layers)
    for parameter, value in zip(trainable(twin), params):
        parameter.set_value(value)
    return twin


@both
def test_outputs_equal_stock_layers(float64, batch_norm):
    net, x = network(batch_norm), inputs(IMAGES, 1, 2, 3)
    expected = stock(net, net.parameters())(paddle.to_tensor(x)).numpy()
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(net(paddle.to_tensor(x)).numpy(), expected, rtol=1e-10, atol=1e-12)


@both
def test_tasks_side_by_side_equal_tasks_alone(float64, batch_norm):
    net, x = network(batch_norm), paddle.to_tensor(inputs(TASKS, IMAGES, FEATURES))
    params = [paddle.to_tensor(p) for p in task_parameters(net)]
    together = net(x, params).numpy()
    assert together.shape == (TASKS, IMAGES, N_OUTPUTS)
    for task in range(TASKS):
        own = [p[task] for p in params]
        np.testing.assert_allclose(together[task], net(x[task], own).numpy(), rtol=1e-11, atol=1e-12)
        np.testing.assert_allclose(together[task], stock(net, own)(x[task]).numpy(), rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(net(x).numpy()[task], net(x[task]).numpy(), rtol=1e-11, atol=1e-12)


@both
def test_theta_is_the_parameters_that_matter(batch_norm):
    net = network(batch_norm)
    theta = net.initial(TASKS)
    idle = {"linear1.bias", "linear2.bias"} if batch_norm else set()
    named = dict(net.named_parameters())
    assert list(named)[:3] == [
        "linear1.weight",
        "linear1.bias",
        "norm1.weight" if batch_norm else "linear2.weight",
    ]
    assert net.theta_names == [name for name in named if name not in idle]
    for name, tensor in zip(net.theta_names, theta):
        assert tensor.shape[0] == TASKS and tensor.ndim == 3
        np.testing.assert_array_equal(
            tensor.numpy().reshape([TASKS, *named[name].shape])[1], named[name].numpy()
        )
    restored = net.parameters_of([tensor + 1 for tensor in theta])
    for (name, parameter), tensor in zip(named.items(), restored):
        expected = np.stack([parameter.numpy()] * TASKS) + (name not in idle)
        np.testing.assert_array_equal(tensor.numpy(), expected)


@both
def test_theta_and_parameters_give_the_same_outputs(float64, batch_norm):
    net, x = network(batch_norm), paddle.to_tensor(inputs(TASKS, IMAGES, FEATURES))
    theta = [tensor * 1.5 + 0.1 for tensor in net.initial(TASKS)]
    direct = net.outputs(net.prepare(x), theta).numpy()
    np.testing.assert_allclose(net(x, net.parameters_of(theta)).numpy(), direct, rtol=1e-12, atol=1e-13)


@both
def test_initial_carries_gradients_to_the_parameters(float64, batch_norm):
    net, x = network(batch_norm), paddle.to_tensor(inputs(TASKS, IMAGES, FEATURES))
    weights = paddle.to_tensor(inputs(TASKS, IMAGES, N_OUTPUTS, seed=5))
    (net.outputs(net.prepare(x), net.initial(TASKS)) * weights).sum().backward()
    twins = [stock(net, net.parameters()) for _ in range(TASKS)]
    for task, twin in enumerate(twins):
        (twin(x[task]) * weights[task]).sum().backward()
    for (name, parameter), *same in zip(net.named_parameters(), *(trainable(twin) for twin in twins)):
        if name not in net.theta_names:
            assert parameter.grad is None
            continue
        expected = sum(p.grad.numpy() for p in same)
        np.testing.assert_allclose(parameter.grad.numpy(), expected, rtol=1e-8, atol=1e-10)


def test_frozen_parameters_get_no_gradient(float64):
    net = network(True)
    net.linear1.weight.stop_gradient = True
    theta = net.initial(TASKS)
    assert [tensor.stop_gradient for tensor in theta] == [True] + [False] * (len(theta) - 1)
    net.outputs(net.prepare(paddle.to_tensor(inputs(TASKS, IMAGES, FEATURES))), theta).sum().backward()
    assert net.linear1.weight.grad is None and net.linear2.weight.grad is not None


def test_statistics_of_other_inputs(float64):
    """With their own nothing changes; with others', the outputs are those of stock layers in eval mode that
    hold the others' moments."""
    net = network(True, hidden=(9,))
    x, others = (paddle.to_tensor(inputs(1, n, FEATURES, seed=n)) for n in (IMAGES, 5))
    theta, prepared = net.initial(1), net.prepare(x)
    own, of_others = net.statistics(prepared, theta), net.statistics(net.prepare(others), theta)
    plain = net.outputs(prepared, theta).numpy()
    np.testing.assert_allclose(net.outputs(prepared, theta, own).numpy(), plain, rtol=1e-12)
    twin = stock(net, net.parameters())
    hidden = F.linear(others[0], net.linear1.weight, net.linear1.bias)
    twin[2]._mean.set_value(hidden.mean(axis=0))
    twin[2]._variance.set_value(hidden.var(axis=0, unbiased=False))
    twin.eval()
    expected = twin(x[0]).numpy()
    assert np.abs(expected - plain[0]).max() > 0.1
    got = net.outputs(prepared, theta, of_others).numpy()[0]
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-11)
    one_by_one = [
        net.outputs(net.prepare(x[:, i : i + 1]), theta, of_others).numpy()[0, 0] for i in range(IMAGES)
    ]
    np.testing.assert_allclose(np.stack(one_by_one), got, rtol=1e-10, atol=1e-12)


# ------------------------------------------------------------------------------------------ derivatives


def gradient_and_product(net, x, labels, params, directions):
    """Loss gradient and Hessian-vector product by theta, as parameters(), float64."""
    theta = [paddle.to_tensor(p) for p in net.theta_of([paddle.to_tensor(p) for p in params])]
    vectors = net.theta_of([paddle.to_tensor(d) for d in directions])
    for tensor in theta:
        tensor.stop_gradient = False
    targets = F.one_hot(paddle.to_tensor(labels), N_OUTPUTS).astype("float64")
    loss = cross_entropy(net.outputs(net.prepare(paddle.to_tensor(x)), theta), targets)
    first = paddle.grad(loss.sum(), theta, create_graph=True)
    second = paddle.grad(first, theta, vectors)
    return [[g.numpy() for g in net.parameters_of(gradients)] for gradients in (first, second)]


def problem(net):
    labels = np.random.RandomState(6).randint(0, N_OUTPUTS, [TASKS, IMAGES])
    return inputs(TASKS, IMAGES, FEATURES), labels, task_parameters(net), task_parameters(net, seed=8)


@both
def test_derivatives_equal_pytorchs(float64, batch_norm):
    torch = pytest.importorskip("torch")
    net = network(batch_norm)
    x, labels, params, directions = problem(net)
    results = gradient_and_product(net, x, labels, params, directions)
    names = [name for name, _ in net.named_parameters()]
    for task in range(TASKS):
        p = {name: torch.tensor(values[task], requires_grad=True) for name, values in zip(names, params)}
        rows = torch.tensor(x[task])
        for layer in range(1, len(net.hidden) + 1):
            rows = rows @ p[f"linear{layer}.weight"] + p[f"linear{layer}.bias"]
            if batch_norm:
                scale, shift = p[f"norm{layer}.weight"], p[f"norm{layer}.bias"]
                rows = torch.nn.functional.batch_norm(rows, None, None, scale, shift, training=True)
            rows = torch.relu(rows)
        layer = len(net.hidden) + 1
        logits = rows @ p[f"linear{layer}.weight"] + p[f"linear{layer}.bias"]
        leaves = [p[name] for name in net.theta_names]
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(labels[task]))
        first = torch.autograd.grad(loss, leaves, create_graph=True)
        vectors = [torch.tensor(directions[names.index(name)][task]) for name in net.theta_names]
        second = torch.autograd.grad(first, leaves, vectors)
        for ours, theirs in zip(results, (first, second)):
            for name, expected in zip(net.theta_names, theirs):
                expected, got = expected.detach().numpy(), ours[names.index(name)][task]
                assert np.abs(expected).max() > 1e-4, name
                assert np.abs(got - expected).max() <= 1e-9 * np.abs(expected).max(), name


@both
def test_derivatives_equal_differences(float64, batch_norm):
    net = network(batch_norm)
    x, labels, params, directions = problem(net)
    _, product = gradient_and_product(net, x, labels, params, directions)
    above, below = (
        gradient_and_product(
            net, x, labels, [p + sign * STEP * d for p, d in zip(params, directions)], directions
        )[0]
        for sign in (1, -1)
    )
    for (name, _), got, upper, lower in zip(net.named_parameters(), product, above, below):
        if name in net.theta_names:
            expected = (upper - lower) / (2 * STEP)
            np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def test_a_unit_that_hardly_varies_is_normalised_exactly():
    """In float32, where the mean of a unit is a thousand times its deviation."""
    net = network(True, in_features=1, hidden=(1,), n_outputs=1)
    for name, value in (("linear1.weight", 1.0), ("norm1.weight", 1.0), ("linear2.weight", 1.0)):
        dict(net.named_parameters())[name].set_value(
            np.full_like(dict(net.named_parameters())[name].numpy(), value)
        )
    net.norm1.bias.set_value(np.float32([5]))
    net.linear2.bias.set_value(np.float32([0]))
    x = (1000 + np.float32([-1, -0.5, 0.25, 1.25]))[:, None]
    centred = x.astype(np.float64) - x.astype(np.float64).mean()
    expected = centred / np.sqrt((centred**2).mean() + 1e-5) + 5
    np.testing.assert_allclose(net(paddle.to_tensor(x)).numpy(), expected, rtol=2e-6)


# -------------------------------------------------------------------------------------- parameters, bad input


def test_weights_begin_as_in_the_papers_code():
    paddle.seed(3)
    net = MLP(784)
    assert [tuple(layer.weight.shape) for layer in net.sublayers() if layer.weight.ndim == 2] == [
        (784, 256),
        (256, 128),
        (128, 64),
        (64, 64),
        (64, 5),
    ]
    weight = net.linear1.weight.numpy()
    assert np.abs(weight).max() <= 0.02 and np.abs(weight).max() > 0.0199
    assert weight.std() == pytest.approx(0.0088, rel=0.01)  # what is left of 0.01 after the cut
    assert (net.norm1.weight.numpy() == 1).all() and not net.norm1.bias.numpy().any()
    assert not net.linear5.bias.numpy().any()
    again = MLP(784)
    assert not np.array_equal(again.linear1.weight.numpy(), weight)
    paddle.seed(3)
    assert np.array_equal(MLP(784).linear1.weight.numpy(), weight)


def test_state_dict_is_complete_and_loads():
    net, other = network(True), network(True, seed=5)
    assert list(net.state_dict()) == [name for name, _ in net.named_parameters()]
    other.set_state_dict(net.state_dict())
    x = paddle.to_tensor(inputs(IMAGES, FEATURES).astype(np.float32))
    np.testing.assert_array_equal(other(x).numpy(), net(x).numpy())


def test_equal_inputs_are_finite():
    assert np.isfinite(MLP(784)(paddle.ones([4, 1, 28, 28])).numpy()).all()


@pytest.mark.parametrize(
    "sizes, message",
    [
        ({"in_features": 0}, "in_features must be at least 1, not 0"),
        ({"hidden": (4, -1)}, "a hidden layer must be at least 1, not -1"),
        ({"n_outputs": 0}, "n_outputs must be at least 1, not 0"),
    ],
)
def test_impossible_networks_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        MLP(**{"in_features": 3, **sizes})


def test_inputs_and_parameters_of_a_wrong_shape_are_refused():
    net = network(True)
    wanted = r"inputs must be floating point, \(N, ...\) of 6 numbers.*, not paddle.float32 \("
    for shape in ([4, 5], [2, 4, 5], [6]):
        with pytest.raises(ValueError, match=wanted):
            net(paddle.ones(shape))
    for params in (net.parameters()[:-1], [p.unsqueeze(0) for p in net.parameters()]):
        with pytest.raises(ValueError, match=r"params must be shaped as parameters\(\)"):
            net(paddle.ones([4, 2, FEATURES] if params[0].ndim == 3 else [4, FEATURES]), params)
