"""Every operator in float64: first and second derivatives against finite differences."""
import numpy as np
import paddle
import pytest

from paddle_maml import operators
from paddle_maml.operators import WindowRows
from paddle_maml.windows import Windows

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


def test_append_zero_row(float64):
    check_twice(operators.append_zero_row, random_arrays([2, 5, 3]))
    assert not operators.append_zero_row(paddle.ones([2, 5, 3]))[:, -1].numpy().any()


def test_affine_rows(float64):
    check_twice(operators.affine_rows, random_arrays([2, 5, 3], [2, 1, 3], [2, 1, 3]))


def test_moments_are_mean_and_biased_variance_over_all_pieces(float64):
    pieces = random_arrays([2, 6, 3], [2, 4, 3])
    mean, variance = operators.moments([paddle.to_tensor(p) for p in pieces])
    rows = np.concatenate(pieces, axis=1)
    np.testing.assert_allclose(mean.numpy(), rows.mean(axis=1, keepdims=True), rtol=1e-12)
    np.testing.assert_allclose(variance.numpy(), rows.var(axis=1, keepdims=True), rtol=1e-12)
    check_twice(lambda *pieces: operators.moments(pieces), pieces)


def test_max_of_four(float64):
    check_twice(operators.max_of_four, random_arrays(*[[2, 5, 3]] * 4))


def test_max_of_four_sends_a_tie_to_the_first_corner_only(float64):
    for equal in range(1, 16):
        corners = leaves([np.full([1, 1, 1], 1.0 if equal >> corner & 1 else 0.0) for corner in range(4)])
        winner = operators.max_of_four(*corners)
        received = [g.item() for g in paddle.grad((winner * winner).sum() / 2, corners)]
        first = next(corner for corner in range(4) if equal >> corner & 1)
        assert received == [1.0 if corner == first else 0.0 for corner in range(4)]


@pytest.mark.parametrize("block_rows", [2, 5, 1000])
@pytest.mark.parametrize("count", [1, 4])
def test_largest_product(float64, monkeypatch, block_rows, count):
    monkeypatch.setattr(operators, "CPU_PRODUCT_ROWS", block_rows)
    pieces = [paddle.to_tensor(piece) for piece in random_arrays(*[[2, 7, 3]] * count, seed=4)]
    weights = random_arrays([2, 3, 5])
    check_twice(lambda weight: operators.largest_product(pieces, weight), weights)
    products = np.stack([piece.numpy() @ weights[0] for piece in pieces])
    result = operators.largest_product(pieces, paddle.to_tensor(weights[0])).numpy()
    np.testing.assert_allclose(result, np.maximum(products.max(axis=0), 0), atol=1e-14)


def test_largest_product_sends_a_tie_to_the_first_corner_only(float64):
    """Four equal products: the gradient by the weight is that of one window, not of four."""
    pieces = [paddle.to_tensor(np.full([1, 1, 2], 1.0)) for _ in range(4)]
    [weight] = leaves([np.full([1, 2, 1], 3.0)])
    output = operators.largest_product(pieces, weight)
    [gradient] = paddle.grad((output * output).sum() / 2, [weight])
    assert gradient.numpy().ravel().tolist() == [6.0, 6.0]


@pytest.mark.parametrize("height, width, stride, pool", [(4, 6, 1, True), (5, 7, 1, True), (5, 4, 1, False), (5, 6, 2, False)])
def test_convolve(float64, height, width, stride, pool):
    plan = WindowRows(Windows(height, width, stride, pool))
    arrays = random_arrays([2, 3 * height * width, 2], [2, 18, 4])
    check_twice(lambda rows, weight: operators.convolve(operators.append_zero_row(rows), weight, plan, 3), arrays)


@pytest.mark.parametrize("block_rows", [1, 7, 20, 100000])
@pytest.mark.parametrize("pool", [False, True])
def test_convolve_in_blocks_equals_conv2d(float64, monkeypatch, block_rows, pool):
    monkeypatch.setattr(operators, "CPU_BLOCK_ROWS", block_rows)
    x, kernel = random_arrays([3, 2, 2, 7, 5], [3, 4, 2, 3, 3])
    plan = WindowRows(Windows(7, 5, pool=pool))
    rows = paddle.to_tensor(x.transpose(0, 1, 3, 4, 2).reshape(3, -1, 2))
    weight = paddle.to_tensor(kernel.transpose(0, 3, 4, 2, 1).reshape(3, 18, 4))
    rows.stop_gradient = weight.stop_gradient = False
    pieces = operators.convolve(operators.append_zero_row(rows), weight, plan, 2)
    for task in range(3):
        stock_x, stock_w = leaves([x[task], kernel[task]])
        expected = paddle.nn.functional.conv2d(stock_x, stock_w, padding=1)
        whole = expected.numpy()
        if pool:
            corners = [whole[:, :, i:6:2, j:4:2] for i in (0, 1) for j in (0, 1)]
            for piece, corner in zip(pieces, corners):
                np.testing.assert_allclose(piece[task].numpy(), corner.transpose(0, 2, 3, 1).reshape(-1, 4), atol=1e-12)
            assert sum(float(p[task].sum()) for p in pieces) == pytest.approx(whole.sum(), abs=1e-10)
        else:
            np.testing.assert_allclose(pieces[0][task].numpy(), whole.transpose(0, 2, 3, 1).reshape(-1, 4), atol=1e-12)
        total = sum((piece[task] ** 2).sum() for piece in pieces)
        for ours, stock in zip(paddle.grad(total, [rows, weight], retain_graph=True),
                               paddle.grad((expected ** 2).sum(), [stock_x, stock_w])):
            stock = stock.numpy()
            moved = stock.transpose(0, 2, 3, 1).reshape(-1, 2) if stock.shape[0] == 2 else \
                stock.transpose(2, 3, 1, 0).reshape(18, 4)
            np.testing.assert_allclose(ours[task].numpy(), moved, atol=1e-11)


def test_cross_entropy(float64):
    logits = random_arrays([2, 3, 4])
    targets = np.eye(4)[[[0, 3, 1], [2, 2, 0]]]
    check_twice(lambda z: operators.cross_entropy(z, paddle.to_tensor(targets)), logits)
    [z] = logits
    log_probabilities = z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
    expected = -(log_probabilities * targets).sum(axis=-1).mean(axis=-1)
    np.testing.assert_allclose(operators.cross_entropy(paddle.to_tensor(z), paddle.to_tensor(targets)).numpy(), expected)


def test_cross_entropy_of_huge_logits_is_finite(float64):
    logits = paddle.to_tensor([[[1e4, -1e4], [-1e4, 1e4]]])
    targets = paddle.to_tensor([[[1.0, 0.0], [1.0, 0.0]]])
    assert operators.cross_entropy(logits, targets).item() == pytest.approx(1e4)
