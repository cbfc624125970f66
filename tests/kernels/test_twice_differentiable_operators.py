"""Elementwise, gathering, pooling and normalising operators: as stock, and differentiated twice."""

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from kernels.test_operators import check_twice, gradients, leaves, random_arrays, second_gradients

from paddle_maml.kernels import elementwise, gathering, normalisation, pooling

SHAPE = [3, 4, 5]

# name: (own, stock, the same in PyTorch)
ELEMENTWISE = {
    "exp": (elementwise.exp, paddle.exp, lambda t, x: x.exp()),
    "erf": (elementwise.erf, paddle.erf, lambda t, x: x.erf()),
    "softmax": (elementwise.softmax, F.softmax, lambda t, x: x.softmax(-1)),
    "softmax of axis 1": (
        lambda x: elementwise.softmax(x, 1),
        lambda x: F.softmax(x, 1),
        lambda t, x: x.softmax(1),
    ),
    "log_softmax": (elementwise.log_softmax, F.log_softmax, lambda t, x: x.log_softmax(-1)),
    "log_softmax of axis 0": (
        lambda x: elementwise.log_softmax(x, 0),
        lambda x: F.log_softmax(x, 0),
        lambda t, x: x.log_softmax(0),
    ),
    "gelu": (elementwise.gelu, F.gelu, lambda t, x: t.nn.functional.gelu(x)),
    "gelu by tanh": (
        lambda x: elementwise.gelu(x, True),
        lambda x: F.gelu(x, True),
        lambda t, x: t.nn.functional.gelu(x, approximate="tanh"),
    ),
    "relu6": (elementwise.relu6, F.relu6, lambda t, x: t.nn.functional.relu6(x)),
    "hardswish": (elementwise.hardswish, F.hardswish, lambda t, x: t.nn.functional.hardswish(x)),
    "softsign": (elementwise.softsign, F.softsign, lambda t, x: t.nn.functional.softsign(x)),
    "log_sigmoid": (elementwise.log_sigmoid, F.log_sigmoid, lambda t, x: t.nn.functional.logsigmoid(x)),
    "mish": (elementwise.mish, F.mish, lambda t, x: t.nn.functional.mish(x)),
}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise(float64, name):
    own, stock, _ = ELEMENTWISE[name]
    [x] = random_arrays(SHAPE)
    check_twice(own, [2 * x])
    expected = stock(paddle.to_tensor(2 * x)).numpy()
    np.testing.assert_allclose(own(paddle.to_tensor(2 * x)).numpy(), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise_is_as_exact_as_pytorch(float64, name):
    torch = pytest.importorskip("torch")
    own, _, theirs = ELEMENTWISE[name]
    x, direction, weights = random_arrays(SHAPE, SHAPE, SHAPE)
    leaf = torch.tensor(2 * x, requires_grad=True)
    output = theirs(torch, leaf)
    loss = ((output * output + output) * torch.tensor(weights)).sum()
    [first] = torch.autograd.grad(loss, leaf, create_graph=True)
    [second] = torch.autograd.grad(first, leaf, torch.tensor(direction))

    [ours] = leaves([2 * x])
    output = own(ours)
    loss = ((output * output + output) * paddle.to_tensor(weights)).sum()
    [gradient] = paddle.grad(loss, [ours], create_graph=True)
    [product] = paddle.grad([gradient], [ours], [paddle.to_tensor(direction)])
    for got, expected in ((gradient, first), (product, second)):
        error = np.linalg.norm(got.numpy() - expected.detach().numpy())
        assert error <= 1e-12 * np.linalg.norm(expected.detach().numpy())


def test_third_derivative_of_exp(float64):
    """Backward is made of the operator itself, so it does not end at the second."""
    [x] = leaves(random_arrays([3]))
    value = elementwise.exp(x)
    expected = value.numpy()
    for _ in range(3):
        [value] = paddle.grad(value.sum(), [x], create_graph=True)
        np.testing.assert_allclose(value.numpy(), expected, rtol=1e-14)


def test_log_softmax_of_what_rounds_to_zero(float64):
    result = elementwise.log_softmax(paddle.to_tensor([[0.0, -2000.0]]))
    assert result.numpy().tolist() == [[0.0, -2000.0]]


def test_prelu(float64):
    x, weight = random_arrays([3, 4, 2], [4])
    check_twice(elementwise.prelu, [x, weight])
    stock = F.prelu(paddle.to_tensor(x), paddle.to_tensor(weight)).numpy()
    np.testing.assert_allclose(
        elementwise.prelu(paddle.to_tensor(x), paddle.to_tensor(weight)).numpy(), stock
    )


def test_dropout_drops_what_stock_drops(float64):
    [x] = random_arrays(SHAPE)
    results = []
    for function in (elementwise.dropout, F.dropout):
        paddle.seed(3)
        results.append(function(paddle.to_tensor(x), 0.5).numpy())
    np.testing.assert_array_equal(*results)
    assert 0 < (results[0] == 0).sum() < results[0].size


def test_stack_and_flatten(float64):
    arrays = random_arrays(SHAPE, SHAPE)
    for axis in (0, 2, -1):
        check_twice(lambda *tensors, axis=axis: gathering.stack(tensors, axis), arrays)
        result = gathering.stack([paddle.to_tensor(a) for a in arrays], axis).numpy()
        np.testing.assert_array_equal(result, np.stack(arrays, axis))
    check_twice(lambda x: gathering.flatten(x, 1), arrays[:1])
    for start, stop in ((0, -1), (1, 2), (-2, -1), (1, 1)):
        result = gathering.flatten(paddle.to_tensor(arrays[0]), start, stop).numpy()
        expected = paddle.flatten(paddle.to_tensor(arrays[0]), start, stop).numpy()
        np.testing.assert_array_equal(result, expected)


def test_gather_adds_up_the_gradients_of_a_row(float64):
    index = paddle.to_tensor([0, 2, 2])
    check_twice(lambda x: gathering.gather(x, index), random_arrays([4, 3]))
    [x] = leaves(random_arrays([4, 3]))
    [gradient] = paddle.grad(gathering.gather(x, index).sum(), [x])
    assert gradient.numpy()[:, 0].tolist() == [1, 0, 2, 0]


@pytest.mark.parametrize("padding_idx", [None, 1, -1])
def test_embedding(float64, padding_idx):
    tokens = paddle.to_tensor([[0, 1, 3], [3, 3, 1]])
    [weight] = random_arrays([4, 2])
    check_twice(lambda w: gathering.embedding(tokens, w, padding_idx), [weight])
    results = []
    for function in (gathering.embedding, F.embedding):
        [w] = leaves([weight])
        output = function(tokens, w, padding_idx)
        results.append((output.numpy(), paddle.grad((output * output).sum(), [w])[0].numpy()))
    for ours, stock in zip(*results):
        np.testing.assert_array_equal(ours, stock)


POOLS = [
    {"kernel_size": 2},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True},
    {"kernel_size": (2, 3), "stride": (3, 2), "padding": [0, 1], "ceil_mode": True},
    {"kernel_size": [3, 2], "stride": 1, "padding": [0, 1, 1, 0]},
    {"kernel_size": 3, "stride": 2, "padding": [[0, 0], [0, 0], [1, 0], [2, 1]]},
    {"kernel_size": 3, "stride": 2, "padding": "SAME"},
    {"kernel_size": 3, "stride": 1, "padding": "valid"},
]


@pytest.mark.parametrize("options", POOLS, ids=str)
@pytest.mark.parametrize("ties", [False, True])
def test_max_pool2d(float64, options, ties):
    [x] = random_arrays([2, 3, 7, 6])
    if ties:
        # Few values, so that nearly every window has several largest ones.
        x = np.sign(x)
    else:
        check_twice(lambda x: pooling.max_pool2d(x, **options), [x])
    results = []
    for function in (pooling.max_pool2d, F.max_pool2d):
        [leaf] = leaves([x])
        output = function(leaf, **options)
        [weights] = random_arrays(output.shape)
        [gradient] = paddle.grad((output * paddle.to_tensor(weights)).sum(), [leaf])
        results.append((output.numpy(), gradient.numpy()))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=1e-14)


def test_a_tie_goes_to_the_first_in_reading_order(float64):
    [x] = leaves([np.zeros([1, 1, 4, 4])])
    [gradient] = paddle.grad(pooling.max_pool2d(x, 2).sum(), [x])
    expected = np.zeros([4, 4])
    expected[::2, ::2] = 1
    np.testing.assert_array_equal(gradient.numpy()[0, 0], expected)


def test_the_second_derivative_goes_through_the_chosen_element(float64):
    """sum(max^2 / 2): the Hessian is one at the chosen element, on ties too, and zero elsewhere."""
    x = np.array([[[[3.0, 3.0, 1.0, 2.0], [3.0, 0.0, 2.0, 2.0]]]])
    products = second_gradients(lambda x: pooling.max_pool2d(x, 2), [x], [np.ones(x.shape)])
    assert (products[0] != 0).astype(int).tolist() == [[[[1, 0, 0, 1], [0, 0, 0, 0]]]]


def test_channels_last(float64):
    [x] = random_arrays([2, 6, 5, 3])
    own = pooling.max_pool2d(paddle.to_tensor(x), 3, 2, 1, data_format="NHWC").numpy()
    stock = F.max_pool2d(paddle.to_tensor(x), 3, 2, 1, data_format="NHWC").numpy()
    np.testing.assert_array_equal(own, stock)


@pytest.mark.parametrize("options", [(2,), (3, 2, 1), (3, 2, 1, True), ([3], 1, "SAME")], ids=str)
def test_max_pool1d(float64, options):
    [x] = random_arrays([2, 3, 8])
    check_twice(lambda x: pooling.max_pool1d(x, *options), [x])
    names = dict(zip(("kernel_size", "stride", "padding", "ceil_mode"), options))
    stock = F.max_pool1d(paddle.to_tensor(x), **names).numpy()
    np.testing.assert_array_equal(pooling.max_pool1d(paddle.to_tensor(x), **names).numpy(), stock)


def test_adaptive_max_pool(float64):
    [x] = random_arrays([2, 3, 7, 5])
    for size in (1, 3, (2, None)):
        check_twice(lambda x, size=size: pooling.adaptive_max_pool2d(x, size), [x])
        stock = F.adaptive_max_pool2d(paddle.to_tensor(x), size).numpy()
        np.testing.assert_array_equal(pooling.adaptive_max_pool2d(paddle.to_tensor(x), size).numpy(), stock)
    [x] = random_arrays([2, 3, 7])
    check_twice(lambda x: pooling.adaptive_max_pool1d(x, 3), [x])


def test_windows_of_nothing_but_nan_choose_within_their_plane():
    x = paddle.full([1, 2, 2, 2], float("nan"))
    assert np.isnan(pooling.max_pool2d(x, 2).numpy()).all()


def test_a_pooling_that_makes_no_sense_is_refused():
    x = paddle.ones([1, 1, 4, 4])
    with pytest.raises(ValueError, match="windows of padding alone"):
        pooling.max_pool2d(x, 1, 3, ceil_mode=True, padding=[0, 1, 0, 0])
    with pytest.raises(ValueError, match="'same-ish'"):
        pooling.max_pool2d(x, 2, padding="same-ish")


def test_normalisation(float64):
    x, weight, bias = random_arrays([4, 6, 3, 2], [6], [6])
    check_twice(
        lambda x, w, b: normalisation.batch_norm(x, *normalisation.channel_moments(x), w, b, 1e-5),
        [x, weight, bias],
    )
    check_twice(lambda x, w, b: normalisation.group_norm(x, 3, w, b, 1e-5), [x, weight, bias])
    check_twice(lambda x, w, b: normalisation.layer_norm(x, [3, 2], w, b, 1e-5), [x, weight, bias])
    mean, variance = normalisation.channel_moments(paddle.to_tensor(x))
    np.testing.assert_allclose(mean.numpy(), x.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(variance.numpy(), x.var((0, 2, 3)), rtol=1e-12)


def test_epsilon_is_not_rounded(float64):
    """Paddle 2.6 adds 1e-5 in single precision; a channel that is constant would show it."""
    row = paddle.to_tensor([[1e-9, -1e-9]])
    got = normalisation.layer_norm(row, [2], None, None, 1e-5).numpy()
    np.testing.assert_allclose(got, np.array([[1e-9, -1e-9]]) / np.sqrt(1e-18 + 1e-5), rtol=1e-13)


def test_layer_norm_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"over \[5\] got an input \[2, 4\]"):
        normalisation.layer_norm(paddle.ones([2, 4]), [5], None, None, 1e-5)


def test_the_gradient_by_one_of_two_inputs_alone(float64):
    a, b = leaves(random_arrays([3], [3]))
    [gradient] = paddle.grad((elementwise.erf(elementwise.exp(a) * b)).sum(), [b], create_graph=True)
    expected = gradients(lambda a, b: elementwise.erf(elementwise.exp(a) * b), [a.numpy(), b.numpy()])
    assert gradient.shape == expected[0][1].shape
    [second] = paddle.grad([gradient], [b], [paddle.ones([3])])
    assert np.isfinite(second.numpy()).all()
