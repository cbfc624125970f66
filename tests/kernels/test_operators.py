"""Every operator in float64: first and second derivatives against finite differences."""

import functools

import numpy as np
import paddle
import pytest

from paddle_maml.kernels import convolution, operators
from paddle_maml.kernels.convolution import Convolution, window_rows
from paddle_maml.kernels.windows import Windows

PooledConvolution, StridedConvolution = (functools.partial(Convolution, pool=pool) for pool in (True, False))
STEP = 1e-6


def random_arrays(*shapes, seed=0):
    random = np.random.RandomState(seed)
    return [random.standard_normal(shape) for shape in shapes]


def leaves(arrays):
    tensors = [paddle.to_tensor(array) for array in arrays]
    for tensor in tensors:
        tensor.stop_gradient = False
    return tensors


def scalar(function, inputs):
    """A weighted sum of the outputs and their squares, so that neither derivative is constant."""
    outputs = function(*inputs)
    total = 0.0
    for number, output in enumerate(outputs if isinstance(outputs, (tuple, list)) else [outputs]):
        weights = paddle.to_tensor(np.random.RandomState(100 + number).standard_normal(output.shape))
        total = total + ((output * output + output) * weights).sum()
    return total


def gradients(function, arrays, create_graph=False):
    inputs = leaves(arrays)
    return inputs, paddle.grad(scalar(function, inputs), inputs, create_graph=create_graph)


def second_gradients(function, arrays, directions):
    """The gradient of <first gradient, direction>: the Hessian times the direction."""
    inputs, first = gradients(function, arrays, create_graph=True)
    return [g.numpy() for g in paddle.grad(first, inputs, [paddle.to_tensor(d) for d in directions])]


def check_twice(function, arrays):
    """First derivatives along random directions, then second ones, by central differences."""
    directions = random_arrays(*[a.shape for a in arrays], seed=7)
    plus = [a + STEP * d for a, d in zip(arrays, directions)]
    minus = [a - STEP * d for a, d in zip(arrays, directions)]
    slope = (float(scalar(function, leaves(plus))) - float(scalar(function, leaves(minus)))) / (2 * STEP)
    first = [g.numpy() for g in gradients(function, arrays)[1]]
    assert abs(slope) > 1e-3
    assert sum((g * d).sum() for g, d in zip(first, directions)) == pytest.approx(slope, rel=1e-6)

    products = second_gradients(function, arrays, directions)
    upper, lower = gradients(function, plus)[1], gradients(function, minus)[1]
    for product, above, below in zip(products, upper, lower):
        expected = (above.numpy() - below.numpy()) / (2 * STEP)
        scale = max(np.abs(expected).max(), 1e-3)
        np.testing.assert_allclose(product / scale, expected / scale, atol=2e-7)


@pytest.mark.parametrize("transpose_a", [False, True])
@pytest.mark.parametrize("transpose_b", [False, True])
def test_matmul(float64, transpose_a, transpose_b):
    a, b = random_arrays([2, 4, 3] if transpose_a else [2, 3, 4], [2, 5, 4] if transpose_b else [2, 4, 5])
    check_twice(lambda a, b: operators.matmul(a, b, transpose_a, transpose_b), [a, b])
    left, right = a.swapaxes(1, 2) if transpose_a else a, b.swapaxes(1, 2) if transpose_b else b
    result = operators.matmul(paddle.to_tensor(a), paddle.to_tensor(b), transpose_a, transpose_b)
    np.testing.assert_allclose(result.numpy(), left @ right, rtol=1e-12)


def test_sum_rows(float64):
    check_twice(operators.sum_rows, random_arrays([2, 5, 3]))


def test_scale_rows(float64):
    check_twice(operators.scale_rows, random_arrays([2, 5, 3], [2, 1, 3]))


def test_affine_rows(float64):
    check_twice(operators.affine_rows, random_arrays([2, 5, 3], [2, 1, 3], [2, 1, 3]))


@pytest.mark.parametrize("portion_rows", [2, 5, 1000])
@pytest.mark.parametrize("count", [1, 4])
def test_largest_product(float64, monkeypatch, portion_rows, count):
    monkeypatch.setattr(operators, "CPU_PRODUCT_ROWS", portion_rows)
    pieces = [paddle.to_tensor(piece) for piece in random_arrays(*[[2, 7, 3]] * count, seed=4)]
    portions = operators.row_portions(pieces)
    weights = random_arrays([2, 3, 5])
    check_twice(lambda weight: operators.largest_product(portions, weight), weights)
    products = np.stack([piece.numpy() @ weights[0] for piece in pieces])
    result = operators.largest_product(portions, paddle.to_tensor(weights[0])).numpy()
    np.testing.assert_allclose(result, np.maximum(products.max(axis=0), 0), atol=1e-14)


def test_largest_product_sends_a_tie_to_the_first_corner_only(float64):
    """Equal products of different windows: the gradient by the weight is the window of the first."""
    for equal in range(1, 16):
        # The largest have the value 3, by an odd number of their own in the first column; others have 0.
        windows = [
            np.array([[[2.0 * corner + 1, 2 - 2.0 * corner]]]) if equal >> corner & 1 else np.zeros([1, 1, 2])
            for corner in range(4)
        ]
        [weight] = leaves([np.ones([1, 2, 1])])
        output = operators.largest_product(
            operators.row_portions([paddle.to_tensor(window) for window in windows]), weight
        )
        [gradient] = paddle.grad(output.sum(), [weight])
        first = next(corner for corner in range(4) if equal >> corner & 1)
        assert output.item() == 3
        assert gradient.numpy().ravel().tolist() == windows[first].ravel().tolist()


@pytest.mark.parametrize("constant", ["rows", "weight", "nothing"])
@pytest.mark.parametrize("kind, pixels", [(PooledConvolution, 4), (StridedConvolution, 6)])
def test_convolve_of_a_constant_and_with_constant_gradients(float64, kind, pixels, constant):
    """A loss that is linear in the outputs, and an input without a gradient: fewer paths to differentiate,
    the same derivatives."""
    layer, (rows, weight, left, right) = (
        kind(5, 4),
        random_arrays([2, 2 * 20, 2], [2, 18, 3], [2, 2 * pixels, 3], [2, 1, 3]),
    )
    left, right = paddle.to_tensor(left), paddle.to_tensor(right)

    def loss(rows, weight):
        pooled, mean, variance = operators.convolve(rows, weight, layer, 2)
        return (pooled * left).sum() + ((mean - variance) * right).sum()

    variable = [name for name in ("rows", "weight") if name != constant]
    values = {"rows": rows, "weight": weight}
    directions = dict(zip(values, random_arrays(rows.shape, weight.shape, seed=3)))

    def gradients_at(shift):
        tensors = {
            name: paddle.to_tensor(value + (shift * directions[name] if name in variable else 0))
            for name, value in values.items()
        }
        for name in variable:
            tensors[name].stop_gradient = False
        inputs = [tensors[name] for name in variable]
        return inputs, paddle.grad(loss(**tensors), inputs, create_graph=True)

    inputs, first = gradients_at(0)
    products = paddle.grad(first, inputs, [paddle.to_tensor(directions[name]) for name in variable])
    above, below = gradients_at(STEP)[1], gradients_at(-STEP)[1]
    for product, one, other in zip(products, above, below):
        np.testing.assert_allclose(product.numpy(), (one.numpy() - other.numpy()) / (2 * STEP), atol=1e-6)


LAYERS = [
    (PooledConvolution, 4, 6),
    (PooledConvolution, 5, 7),
    (PooledConvolution, 3, 4),
    (PooledConvolution, 2, 2),
    (StridedConvolution, 5, 6),
    (StridedConvolution, 4, 7),
    (StridedConvolution, 6, 4),
    (StridedConvolution, 5, 5),
    (StridedConvolution, 1, 2),
    (StridedConvolution, 1, 1),
]


@pytest.mark.parametrize("kind, height, width", LAYERS)
@pytest.mark.parametrize("portion_rows", [1, 200, 100000])
def test_convolve(float64, monkeypatch, kind, height, width, portion_rows):
    monkeypatch.setattr(convolution, "CPU_PORTION_ROWS", portion_rows)
    layer = kind(height, width)
    arrays = random_arrays([2, 3 * height * width, 2], [2, 18, 4])
    check_twice(lambda rows, weight: operators.convolve(rows, weight, layer, 3), arrays)


@pytest.mark.parametrize("kind, height, width", LAYERS)
@pytest.mark.parametrize("portion_rows", [1, 150, 400, 100000])
def test_convolve_equals_stock_operators(float64, monkeypatch, kind, height, width, portion_rows):
    monkeypatch.setattr(convolution, "CPU_PORTION_ROWS", portion_rows)
    x, kernel = random_arrays([3, 5, 2, height, width], [3, 4, 2, 3, 3])
    rows = paddle.to_tensor(x.transpose(0, 1, 3, 4, 2).reshape(3, -1, 2))
    weight = paddle.to_tensor(kernel.transpose(0, 3, 4, 2, 1).reshape(3, 18, 4))
    rows.stop_gradient = weight.stop_gradient = False
    results = operators.convolve(rows, weight, kind(height, width), 5)
    gradients = paddle.grad(sum((result**3).sum() for result in results), [rows, weight])
    for task in range(3):
        stock_x, stock_w = leaves([x[task], kernel[task]])
        pool = kind is PooledConvolution
        whole = paddle.nn.functional.conv2d(stock_x, stock_w, stride=1 if pool else 2, padding=1)
        pooled = paddle.nn.functional.max_pool2d(whole, 2) if pool else whole
        mean, variance = (
            whole.mean(axis=[0, 2, 3]),
            whole.transpose([1, 0, 2, 3]).flatten(1).var(axis=1, unbiased=False),
        )
        expected = [
            pooled.transpose([0, 2, 3, 1]).reshape([-1, 4]),
            mean.reshape([1, 4]),
            variance.reshape([1, 4]),
        ]
        for ours, stock in zip(results, expected):
            np.testing.assert_allclose(ours[task].numpy(), stock.numpy(), rtol=1e-11, atol=1e-11)
        by_x, by_w = paddle.grad(sum((value**3).sum() for value in expected), [stock_x, stock_w])
        np.testing.assert_allclose(
            gradients[0][task].numpy(), by_x.numpy().transpose(0, 2, 3, 1).reshape(-1, 2), atol=1e-9
        )
        np.testing.assert_allclose(
            gradients[1][task].numpy(), by_w.numpy().transpose(2, 3, 1, 0).reshape(18, 4), atol=1e-9
        )


def test_convolve_sends_a_tie_to_the_first_corner_only(float64):
    layer, identity = PooledConvolution(2, 2), np.zeros([1, 9, 1])
    identity[0, 4] = 1
    for equal in range(1, 16):
        pixels = [4.0 if equal >> corner & 1 else 0.0 for corner in range(4)]
        rows, weight = leaves([np.reshape(pixels, [1, 4, 1]), identity])
        pooled, mean, variance = operators.convolve(rows, weight, layer, 1)
        gradient, _ = paddle.grad(pooled.sum() + 0 * (mean + variance).sum(), [rows, weight])
        first = next(corner for corner in range(4) if equal >> corner & 1)
        assert pooled.item() == 4
        assert gradient.numpy().ravel().tolist() == [1.0 if corner == first else 0.0 for corner in range(4)]


def test_the_variance_of_a_nearly_constant_map_does_not_cancel():
    """In float32, where mean(y^2) - mean(y)^2 would be off by a per cent and more."""
    random = np.random.RandomState(0)
    rows = (1000 + random.standard_normal([1, 40 * 16, 1])).astype(np.float32)
    weight = np.zeros([1, 9, 1], np.float32)
    weight[0, 4] = 1
    _, mean, variance = operators.convolve(
        paddle.to_tensor(rows), paddle.to_tensor(weight), StridedConvolution(4, 4), 40
    )
    exact = rows.reshape(40, 4, 4)[:, ::2, ::2].astype(np.float64)
    assert mean.item() == pytest.approx(exact.mean(), rel=1e-6)
    assert variance.item() == pytest.approx(exact.var(), rel=1e-4)


@pytest.mark.parametrize("height, width, pool", [(4, 6, True), (5, 7, True), (5, 6, False)])
def test_window_rows_are_the_patches_and_a_one(float64, height, width, pool):
    x, kernel = random_arrays([2, 3, 2, height, width], [4, 2, 3, 3])
    pieces = window_rows(
        paddle.to_tensor(x.transpose(0, 1, 3, 4, 2).reshape(2, -1, 2)), Windows(height, width, pool), 3
    )
    weight = kernel.transpose(2, 3, 1, 0).reshape(18, 4)
    for task in range(2):
        whole = paddle.nn.functional.conv2d(
            paddle.to_tensor(x[task]), paddle.to_tensor(kernel), stride=1 if pool else 2, padding=1
        ).numpy()
        if pool:
            corners = [
                whole[:, :, i : height // 2 * 2 : 2, j : width // 2 * 2 : 2] for i in (0, 1) for j in (0, 1)
            ]
        else:
            corners = [whole]
        for piece, corner in zip(pieces, corners):
            np.testing.assert_allclose(
                piece[task, :, :-1].numpy() @ weight, corner.transpose(0, 2, 3, 1).reshape(-1, 4), atol=1e-12
            )
        products = [piece[task, :, :-1].numpy() @ weight for piece in pieces]
        assert sum(product.sum() for product in products) == pytest.approx(whole.sum(), abs=1e-10)
        assert sum(len(product) for product in products) == whole.size // 4
    assert all((piece[:, :, -1].numpy() == 1).all() for piece in pieces)


def test_cross_entropy(float64):
    logits = random_arrays([2, 3, 4])
    targets = np.eye(4)[[[0, 3, 1], [2, 2, 0]]]
    check_twice(lambda z: operators.cross_entropy(z, paddle.to_tensor(targets)), logits)
    [z] = logits
    log_probabilities = z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
    expected = -(log_probabilities * targets).sum(axis=-1).mean(axis=-1)
    np.testing.assert_allclose(
        operators.cross_entropy(paddle.to_tensor(z), paddle.to_tensor(targets)).numpy(), expected
    )


def test_cross_entropy_of_huge_logits_is_finite(float64):
    logits = paddle.to_tensor([[[1e4, -1e4], [-1e4, 1e4]]])
    targets = paddle.to_tensor([[[1.0, 0.0], [1.0, 0.0]]])
    assert operators.cross_entropy(logits, targets).item() == pytest.approx(1e4)
