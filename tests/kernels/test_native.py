"""The native kernel: its operators against PyTorch in float64, and what happens where it cannot be compiled.

Every shape is run by the code of this processor's widest vectors; in the slow tests also by that of AVX2 and
plain SSE, where they exist.
"""

import os
import platform
import shutil
import stat
import subprocess
import sys

import numpy as np
import paddle
import pytest

from paddle_maml.kernels import native

FOLDER = os.path.dirname(os.path.abspath(__file__))
CC = shutil.which("cc")
pytestmark = pytest.mark.skipif(CC is None, reason="there is no C compiler")

X86 = platform.machine() in ("x86_64", "AMD64")
INSTRUCTIONS = {"native": [], "avx2": ["-mno-avx512f", "-mavx2", "-mfma"], "sse": ["-mno-avx"]}


@pytest.fixture(
    scope="module",
    params=["native"]
    + [pytest.param(name, marks=pytest.mark.slow) for name in INSTRUCTIONS if X86 and name != "native"],
)
def library(request, tmp_path_factory):
    """The kernel compiled for some instructions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.delenv(native.SWITCH, raising=False)
        patch.setattr(native, "_result", None)
        patch.setattr(
            native,
            "_PROCESSOR_FLAGS",
            [[*flags, *INSTRUCTIONS[request.param]] for flags in native._PROCESSOR_FLAGS],
        )
        assert native.problem() is None
        return native._result


@pytest.fixture
def kernel(library, monkeypatch):
    """The operators over it."""
    monkeypatch.setattr(native, "_result", library)
    return native


def torch_block(x, weight, scale, shift, pool, statistics=None):
    """One task's block by PyTorch, channels last: output, and z before the ReLU with its pooling windows as
    the last axis."""
    import torch.nn.functional as F

    depth = weight.shape[1]
    kernel = weight.reshape(3, 3, -1, depth).permute(3, 2, 0, 1)
    y = F.conv2d(x.permute(0, 3, 1, 2), kernel, stride=1 if pool else 2, padding=1)
    mean, variance = statistics or (y.mean((0, 2, 3)), y.var((0, 2, 3), unbiased=False))
    z = (y - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt() * scale[0, :, None, None] + shift[
        0, :, None, None
    ]
    if pool:
        height, width = (size // 2 for size in z.shape[2:])
        windows = (
            z[:, :, : 2 * height, : 2 * width]
            .reshape(*z.shape[:2], height, 2, width, 2)
            .permute(0, 2, 4, 1, 3, 5)
            .flatten(4)
        )
    else:
        windows = z.permute(0, 2, 3, 1).unsqueeze(-1)
    return F.relu(windows.max(-1).values), windows.detach(), (mean, variance)


def clear_of_ties(windows):
    """Whether rounding in float32 chooses the same corner everywhere."""
    ordered = windows.sort(-1).values
    gaps = [ordered[..., -1].abs().min()] + (
        [(ordered[..., -1] - ordered[..., -2]).min()] if windows.shape[-1] > 1 else []
    )
    return min(gap.item() for gap in gaps) > 5e-5


def draw(shape, depth, pool):
    """x, weight, scale (of both signs), shift and a weight of the output, float64, without a near tie."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    tasks, _, _, _, channels = shape
    for seed in range(200):
        random = np.random.RandomState(seed)
        x = random.standard_normal(shape)
        weight = random.standard_normal([tasks, 9 * channels, depth]) * np.sqrt(2 / (9 * channels))
        scale, shift = (
            1 + random.standard_normal([tasks, 1, depth]),
            random.standard_normal([tasks, 1, depth]) * 0.3,
        )
        arrays = [np.float64(np.float32(a)) for a in (x, weight, scale, shift)]
        blocks = [torch_block(*(torch.tensor(a[task]) for a in arrays), pool) for task in range(tasks)]
        if all(clear_of_ties(windows) for _, windows, _ in blocks):
            return arrays, np.float64(np.float32(random.standard_normal([tasks, *blocks[0][0].shape])))
    raise AssertionError("no drawing was without near ties")


def torch_derivatives(arrays, weights, directions, pool, by_x):
    """Output, gradients of sum(weights * (out + out^2)), and their derivative along the directions, task by
    task."""
    import torch

    results = []
    for task in range(len(weights)):
        inputs = [torch.tensor(a[task], requires_grad=by_x or number > 0) for number, a in enumerate(arrays)]
        out, _, _ = torch_block(*inputs, pool)
        variables = inputs if by_x else inputs[1:]
        first = torch.autograd.grad(
            (torch.tensor(weights[task]) * (out + out * out)).sum(), variables, create_graph=True
        )
        along = [torch.tensor(d[task]) for d in (directions if by_x else directions[1:])]
        results.append([out, *first, *torch.autograd.grad(first, variables, along)])
    return [np.stack([r.detach().numpy() for r in parts]) for parts in zip(*results)]


def leaves(arrays):
    tensors = [paddle.to_tensor(np.float32(a)) for a in arrays]
    for tensor in tensors:
        tensor.stop_gradient = False
    return tensors


def derivatives(function, variables, weights, directions):
    out = function(*variables)
    first = paddle.grad(
        (paddle.to_tensor(np.float32(weights)) * (out + out * out)).sum(), variables, create_graph=True
    )
    second = paddle.grad(first, variables, [paddle.to_tensor(np.float32(d)) for d in directions])
    return [t.numpy() for t in (out, *first, *second)]


def assert_close(ours, theirs, allowed):
    for number, (a, b) in enumerate(zip(ours, theirs)):
        assert a.shape == b.shape
        assert np.isfinite(a).all()
        off = np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-3)
        assert off < allowed, f"number {number}: {off:.2g}"


# Tasks, images, height, width, channels; depth; whether a pooling follows. Small maps are convolved by
# definition, the others by Winograd's algorithm with tiles of 4 and of 2 pixels, alone and together.
SHAPES = [
    ((2, 3, 8, 8, 16), 16, True),
    ((1, 1, 6, 6, 16), 16, True),
    ((2, 2, 7, 9, 16), 32, True),
    ((3, 4, 3, 3, 32), 16, True),
    ((1, 2, 10, 14, 16), 16, True),
    ((1, 1, 2, 3, 16), 16, True),
    ((1, 5, 2, 2, 16), 48, True),
    ((2, 1, 11, 5, 48), 16, True),
    ((1, 1, 13, 18, 16), 16, True),
    ((1, 20, 7, 7, 16), 16, True),
    ((1, 2, 8, 8, 80), 64, True),
    ((1, 1, 9, 6, 64), 80, True),
    ((2, 3, 8, 8, 16), 16, False),
    ((1, 1, 5, 7, 16), 32, False),
    ((2, 4, 3, 3, 32), 16, False),
    ((1, 7, 2, 2, 16), 16, False),
    ((1, 3, 1, 1, 16), 16, False),
    ((1, 2, 4, 9, 64), 80, False),
]


@pytest.mark.parametrize("shape, depth, pool", SHAPES)
def test_block_equals_pytorch(kernel, shape, depth, pool):
    arrays, weights = draw(shape, depth, pool)
    directions = [np.float64(np.float32(np.random.RandomState(50).standard_normal(a.shape))) for a in arrays]
    expected = torch_derivatives(arrays, weights, directions, pool, by_x=True)
    ours = derivatives(lambda *inputs: kernel.block(*inputs, pool)[0], leaves(arrays), weights, directions)
    assert_close(ours[:1], expected[:1], 5e-6)
    assert_close(ours[1:], expected[1:], 5e-5)


@pytest.mark.parametrize("shape, depth, pool", SHAPES[::4])
def test_block_of_a_constant_input(kernel, shape, depth, pool):
    arrays, weights = draw(shape, depth, pool)
    directions = [np.float64(np.float32(np.random.RandomState(50).standard_normal(a.shape))) for a in arrays]
    expected = torch_derivatives(arrays, weights, directions, pool, by_x=False)
    x = paddle.to_tensor(np.float32(arrays[0]))
    ours = derivatives(
        lambda *inputs: kernel.block(x, *inputs, pool)[0], leaves(arrays[1:]), weights, directions[1:]
    )
    assert_close(ours, expected, 5e-5)


FIRST_SHAPES = [
    ((2, 3, 8, 8, 1), 16, True),
    ((1, 1, 5, 7, 3), 32, True),
    ((2, 2, 9, 6, 1), 80, True),
    ((1, 4, 2, 2, 3), 16, True),
    ((1, 2, 6, 6, 5), 16, True),
    ((1, 2, 6, 6, 16), 16, True),
    ((2, 3, 8, 8, 1), 16, False),
    ((1, 1, 5, 7, 3), 32, False),
    ((2, 2, 9, 13, 1), 80, False),
    ((1, 3, 1, 1, 2), 16, False),
]


@pytest.mark.parametrize("shape, depth, pool", FIRST_SHAPES)
def test_first_block_equals_pytorch(kernel, shape, depth, pool):
    arrays, weights = draw(shape, depth, pool)
    directions = [np.float64(np.float32(np.random.RandomState(50).standard_normal(a.shape))) for a in arrays]
    expected = torch_derivatives(arrays, weights, directions, pool, by_x=False)
    images = paddle.to_tensor(np.float32(arrays[0].transpose(0, 1, 4, 2, 3)))
    prepared = kernel.prepare(images, pool)
    ours = derivatives(
        lambda *inputs: kernel.first_block(prepared, *inputs), leaves(arrays[1:]), weights, directions[1:]
    )
    assert_close(ours[:1], expected[:1], 5e-6)
    assert_close(ours[1:], expected[1:], 1e-4)


@pytest.mark.parametrize("pool", [True, False])
@pytest.mark.parametrize("size", [3, 8])
def test_a_nearly_constant_map(kernel, pool, size):
    """The statistics must not cancel: 1000 + noise under a kernel that sums to nothing but for the border."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    random = np.random.RandomState(1)
    x = np.float64(np.float32(1000 + random.standard_normal([1, 6, size, size, 16])))
    weight = np.zeros([1, 9, 16, 16])
    weight[:, 4] = np.eye(16)
    weight, scale, shift = weight.reshape(1, 144, 16), np.ones([1, 1, 16]), np.full([1, 1, 16], 3.0)
    expected, _, (mean, variance) = torch_block(
        *(torch.tensor(a[0]) for a in (x, weight, scale, shift)), pool
    )
    out, own = kernel.block(*[paddle.to_tensor(np.float32(a)) for a in (x, weight, scale, shift)], pool)
    np.testing.assert_allclose(own.mean.numpy()[0], mean.numpy(), rtol=1e-6)
    np.testing.assert_allclose(own.variance.numpy()[0], variance.numpy(), rtol=2e-3)
    np.testing.assert_allclose(out.numpy()[0], expected.numpy(), atol=0.01)


def test_the_covariance_of_nearly_constant_images(kernel):
    random = np.random.RandomState(2)
    images = np.float32(1000 + random.standard_normal([2, 3, 2, 6, 5]))
    prepared = kernel.prepare(paddle.to_tensor(images), pool=True)
    padded = np.pad(np.float64(images), [(0, 0), (0, 0), (0, 0), (1, 1), (1, 1)])
    windows = np.stack(
        [
            padded[:, :, c, i : i + 6, j : j + 5].reshape(2, -1)
            for i in range(3)
            for j in range(3)
            for c in range(2)
        ],
        1,
    )
    np.testing.assert_allclose(prepared.mean.numpy(), windows.mean(axis=2), rtol=1e-6)
    for task in range(2):
        np.testing.assert_allclose(
            prepared.covariance.numpy()[task], np.cov(windows[task], bias=True), rtol=1e-5, atol=0.05
        )
    # Where the border has no part, at the middle of the kernel.
    middle = slice(8, 10)
    for task in range(2):
        np.testing.assert_allclose(
            prepared.covariance.numpy()[task, middle, middle],
            np.cov(windows[task], bias=True)[middle, middle],
            rtol=1e-4,
            atol=1e-4,
        )


def convolved(kernel, x, weight):
    """The block's map before batch norm, and its mean and variance, of one task's float32 arrays (N, H, W, C)
    and (9, C, D)."""
    shape = kernel._shape(1, *x.shape, weight.shape[2], 1, 1)
    y, mean, variance = [kernel._empty(s) for s in (shape.maps(), [1, shape.depth], [1, shape.depth])]
    kernel._call(
        "convolve", shape, paddle.to_tensor(x), paddle.to_tensor(weight), None, None, y, mean, variance
    )
    return y.numpy()[0], mean.numpy()[0], variance.numpy()[0]


@pytest.mark.parametrize("size", [14, 7, 3])
def test_the_map_is_rounded_as_finely_as_by_pytorch(kernel, size):
    """It decides which pixels a pooling chooses: what rounding turns there is seen in the meta-gradient."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    random = np.random.RandomState(size)
    x = np.float32(np.maximum(0, random.standard_normal([8, size, size, 64])))
    weight = np.float32(random.standard_normal([9, 64, 64]) / 17)

    def by_torch(dtype):
        kernel_ = torch.tensor(weight, dtype=dtype).reshape(3, 3, 64, 64).permute(3, 2, 0, 1)
        maps = torch.tensor(x, dtype=dtype).permute(0, 3, 1, 2)
        return torch.nn.functional.conv2d(maps, kernel_, padding=1).permute(0, 2, 3, 1).numpy()

    exact = by_torch(torch.float64)
    ours, theirs = [
        np.sqrt(np.mean((y - exact) ** 2)) for y in (convolved(kernel, x, weight)[0], by_torch(torch.float32))
    ]
    assert 0 < ours < 2 * theirs


@pytest.mark.parametrize("size", [14, 7, 3])
def test_pixels_that_see_the_same_are_equal_to_the_last_bit(kernel, size):
    """In a pooling window; beside it the map is not flat."""
    random = np.random.RandomState(size)
    x = np.float32(random.standard_normal([12, size, size, 32]))
    for image in range(4):
        end = max(3, size - 1 - image)  # wherever that is in a tile
        x[image, :, :end] = x[image, :, :1]
        x[4 + image, :end] = x[4 + image, :1]
        x[8 + image, :end, :end] = x[8 + image, :1, :1]
    y, _, _ = convolved(kernel, x, np.float32(random.standard_normal([9, 32, 48])))
    sees = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
    sees = np.concatenate([sees[:, i : i + size, j : j + size] for i in range(3) for j in range(3)], -1)
    equal = 0
    for image in range(12):
        for i, j in np.ndindex(size // 2, size // 2):
            window = [(image, 2 * i + corner // 2, 2 * j + corner % 2) for corner in range(4)]
            for a, b in (0, 1), (2, 3), (0, 2), (1, 3):
                if (sees[window[a]] == sees[window[b]]).all():
                    equal += 1
                    assert (y[window[a]] == y[window[b]]).all()
    assert equal >= (size // 2 - 1) * 2


@pytest.mark.parametrize("sign", [1, -1])
def test_what_differs_in_the_last_bit_is_no_tie(kernel, sign):
    """The second corner is the largest by one rounding, and has the gradient."""
    x = np.float32([[[1, 1 + 2**-23], [1, 0]]]) * np.float32(sign)
    x = np.broadcast_to(x[None, ..., None], [1, 1, 2, 2, 16])
    weight = np.zeros([1, 9, 16, 16])
    weight[:, 4] = np.eye(16)
    inputs = leaves([x, weight.reshape(1, 144, 16), np.full([1, 1, 16], sign), np.full([1, 1, 16], 5)])
    out, _ = kernel.block(*inputs, True)
    by_x = sign * paddle.grad(out.sum(), inputs)[0].numpy()[0, 0, :, :, 3].ravel()
    assert by_x[1] > max(by_x[0], by_x[2]) + 0.1


def test_the_covariance_of_drawings(kernel):
    """They are flat: roundings of a sum of squares would all go the same way."""
    drawn = np.float32(np.random.RandomState(3).random_sample([1, 20, 1, 28, 28]) < 0.15)
    drawn = np.maximum(drawn, np.roll(drawn, 1, axis=-1))
    prepared = kernel.prepare(paddle.to_tensor(drawn), pool=True)
    padded = np.pad(np.float64(drawn[0, :, 0]), [(0, 0), (1, 1), (1, 1)])
    windows = [padded[:, tap // 3 : tap // 3 + 28, tap % 3 : tap % 3 + 28].ravel() for tap in range(9)]
    expected = np.cov(windows, bias=True)
    off = np.abs(prepared.covariance.numpy()[0] - expected).max() / expected.max()
    assert off < 3e-7


@pytest.mark.slow
def test_a_meta_gradient_is_as_good_as_float32_allows(kernel):
    """Of second order after five inner steps, against float64: on the mean of the tasks PyTorch in float32 is
    3e-5 off, and 2e-4 at most."""
    from paddle_maml import MAML, EpisodeBuilder, MetaLearner, draw_synthetic, meta_batch

    arrays = meta_batch(EpisodeBuilder(draw_synthetic(), 5, 1, 15, seed=0), range(16))
    paddle.seed(0)
    network = MAML(5)
    weights = {name: value.numpy() for name, value in network.state_dict().items()}

    def gradients(dtype):
        paddle.set_default_dtype(dtype)
        try:
            network = MAML(5)
            network.set_state_dict({name: value.astype(dtype) for name, value in weights.items()})
            learner = MetaLearner(network, inner_steps=5, inner_lr=0.1, order=2, chunk=1)
            for task in range(16):
                loss, _ = learner.meta_loss(*[array[task : task + 1] for array in arrays])
                loss.backward()
                yield np.concatenate([np.float64(p.grad.numpy()).ravel() for p in network.parameters()])
                learner.clear_gradients()
        finally:
            paddle.set_default_dtype("float32")

    exact, ours = list(gradients("float64")), list(gradients("float32"))
    off = [np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(ours, exact)]
    assert np.mean(off) < 5e-5 and np.max(off) < 5e-4


@pytest.mark.parametrize("size", [2, 8])
def test_a_tie_goes_to_the_first_corner_only(kernel, size):
    """Of every combination of equal largest corners the first in reading order has all of the gradient."""
    for equal in range(1, 16):
        corners = [equal >> corner & 1 for corner in range(4)]
        x = np.zeros([1, 1, size, size, 16], np.float32)
        x[0, 0, :2, :2, :] = np.reshape(corners, [2, 2, 1])
        if size > 2:
            x[0, 0, 3:, 3:] = np.random.RandomState(equal).standard_normal([size - 3, size - 3, 16])
        weight = np.zeros([1, 9, 16, 16], np.float32)
        weight[:, 4] = np.eye(16)
        inputs = leaves([x, weight.reshape(1, 144, 16), np.ones([1, 1, 16]), np.full([1, 1, 16], 5)])
        # Batch norm spreads gradients over the map: those at the corners differ from the rest by what was
        # chosen.
        out, _ = kernel.block(*inputs, True)
        by_x, _, _, by_shift = [g.numpy() for g in paddle.grad(out[:, :, 0, 0].sum(), inputs)]
        np.testing.assert_allclose(by_shift, 1, rtol=1e-5)
        at = by_x[0, 0, :2, :2, 3].ravel()
        first = corners.index(1)
        others = [at[i] for i in range(4) if corners[i] and i != first]
        assert all(at[first] > other + 0.1 for other in others)
        assert not others or np.ptp(others) < 1e-4


def test_a_tie_of_images_goes_to_the_first_corner_only(kernel):
    """On a flat image all corners are equal: the gradient is that of the window of the first."""
    images = paddle.ones([1, 1, 1, 6, 6])
    prepared = kernel.prepare(images, pool=True)
    weight = np.zeros([1, 9, 16])
    weight[:, 4] = 1
    inputs = leaves([weight, np.ones([1, 1, 16]), np.full([1, 1, 16], 2)])
    out = kernel.first_block(prepared, *inputs)
    by_weight, _, by_shift = paddle.grad(out[:, :, 0, 0].sum(), inputs)
    np.testing.assert_allclose(by_shift.numpy(), 1)
    # Of that window the first row and column are outside the image.
    mean, taps = prepared.mean.numpy()[0], np.float64([[0, 0, 0], [0, 1, 1], [0, 1, 1]]).ravel()
    rstd = 1 / np.sqrt(1e-5)
    np.testing.assert_allclose(by_weight.numpy()[0, :, 5], rstd * (taps - mean), rtol=1e-4, atol=1e-2)


def test_nothing_positive_has_no_gradient(kernel):
    arrays = (
        np.random.RandomState(0).standard_normal([1, 2, 8, 8, 16]),
        np.random.RandomState(1).standard_normal([1, 144, 16]),
    )
    inputs = leaves([*arrays, np.zeros([1, 1, 16]), np.zeros([1, 1, 16])])
    out, _ = kernel.block(*inputs, True)
    assert not out.numpy().any()
    assert not any(g.numpy().any() for g in paddle.grad(out.sum(), inputs))


def test_nan_is_not_hidden(kernel):
    inputs = leaves(
        [np.ones([1, 2, 8, 8, 16]), np.ones([1, 144, 16]), np.full([1, 1, 16], np.nan), np.zeros([1, 1, 16])]
    )
    assert np.isnan(kernel.block(*inputs, True)[0].numpy()).all()
    prepared = kernel.prepare(paddle.rand([1, 2, 1, 8, 8]), True)
    assert np.isnan(kernel.first_block(prepared, paddle.ones([1, 9, 16]), *inputs[2:]).numpy()).all()


@pytest.mark.parametrize("pool", [True, False])
def test_statistics_of_other_images(kernel, pool):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    random = np.random.RandomState(0)
    x, other, weight, scale, shift = [
        np.float64(np.float32(random.standard_normal(shape)))
        for shape in ([2, 3, 7, 8, 16], [2, 4, 7, 8, 16], [2, 144, 32], [2, 1, 32], [2, 1, 32])
    ]
    tensors = [paddle.to_tensor(np.float32(a)) for a in (weight, scale, shift)]
    _, statistics = kernel.block(paddle.to_tensor(np.float32(other)), *tensors, pool)
    out, _ = kernel.block(paddle.to_tensor(np.float32(x)), *tensors, pool, statistics)
    images = [paddle.to_tensor(np.float32(a.transpose(0, 1, 4, 2, 3))) for a in (x, other)]
    first = kernel.first_block(
        kernel.prepare(images[0], pool), *tensors, kernel.prepare(images[1], pool)[1:3]
    )
    for task in range(2):
        weight_, scale_, shift_ = (torch.tensor(a[task]) for a in (weight, scale, shift))
        _, _, moments = torch_block(torch.tensor(other[task]), weight_, scale_, shift_, pool)
        expected, _, _ = torch_block(torch.tensor(x[task]), weight_, scale_, shift_, pool, moments)
        np.testing.assert_allclose(out.numpy()[task], expected.numpy(), atol=1e-4)
        np.testing.assert_allclose(first.numpy()[task], expected.numpy(), atol=1e-4)


def network_arrays(random, pool, channels=1, tasks=3, images=4, size=20, width=16):
    """Images and the packed parameters of four blocks and a linear layer."""
    arrays = []
    for number in range(4):
        rows = 9 * (width if number else channels)
        arrays += [
            random.standard_normal([tasks, rows, width]) * np.sqrt(2 / rows),
            1 + 0.7 * random.standard_normal([tasks, 1, width]),
            0.3 * random.standard_normal([tasks, 1, width]),
        ]
    features = width * (1 if pool else 4)
    return random.standard_normal([tasks, images, channels, size, size]), arrays + [
        random.standard_normal([tasks, features, 5]) * 0.3
    ]


def network_loss(features, packed):
    """The sum over the tasks of the mean square of the linear layer's output; products of two axes, which any
    Paddle differentiates twice."""
    total = 0.0
    for task in range(features.shape[0]):
        rows = features[task].reshape([features.shape[1], -1])  # flatten has no second derivative
        outputs = paddle.matmul(rows, packed[-1][task])
        total = total + (outputs * outputs).mean()
    return total


@pytest.mark.parametrize("pool, channels", [(True, 1), (True, 3), (False, 1)])
def test_hessian_vector_product_of_the_network(kernel, pool, channels):
    """As one inner step of MAML has it: the gradient of the loss after a gradient step."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    images, arrays = network_arrays(np.random.RandomState(4), pool, channels)

    def torch_features(x, packed):
        x = x.permute(0, 2, 3, 1)
        for number in range(4):
            x, _, _ = torch_block(x, *packed[3 * number : 3 * number + 3], pool)
        return x

    prepared, packed = kernel.prepare(paddle.to_tensor(np.float32(images)), pool), leaves(arrays)
    gradient = paddle.grad(
        network_loss(kernel.features(prepared, packed)[0], packed), packed, create_graph=True
    )
    vectors = [np.random.RandomState(9).standard_normal(a.shape) for a in arrays]
    products = paddle.grad(gradient, packed, [paddle.to_tensor(np.float32(v)) for v in vectors])
    for task in range(len(images)):
        theirs = [torch.tensor(np.float64(np.float32(a[task])), requires_grad=True) for a in arrays]
        outputs = (
            torch_features(torch.tensor(np.float64(np.float32(images[task]))), theirs).flatten(1) @ theirs[-1]
        )
        first = torch.autograd.grad((outputs * outputs).mean(), theirs, create_graph=True)
        second = torch.autograd.grad(
            first, theirs, [torch.tensor(np.float64(np.float32(v[task]))) for v in vectors]
        )
        assert_close([g.numpy()[task] for g in gradient], [g.detach().numpy() for g in first], 1e-3)
        assert_close([p.numpy()[task] for p in products], [p.detach().numpy() for p in second], 1e-3)


@pytest.mark.parametrize("pool", [True, False])
def test_threads_and_company_change_no_bit(kernel, pool):
    """A task's results are the same whichever tasks are beside it, and however many threads compute them."""
    images, arrays = network_arrays(np.random.RandomState(4), pool)

    def everything(threads, tasks):
        packed = leaves([a[tasks] for a in arrays])
        prepared = kernel.prepare(paddle.to_tensor(np.float32(images[tasks])), pool, threads)
        gradient = paddle.grad(
            network_loss(kernel.features(prepared, packed, threads=threads)[0], packed),
            packed,
            create_graph=True,
        )
        products = paddle.grad(gradient, packed, [paddle.ones_like(g) for g in gradient])
        return [t.numpy() for t in (*gradient, *products)]

    alone = everything(1, slice(0, 3))
    for threads in (1, 2, 3, 50):
        assert all((a == b).all() for a, b in zip(alone, everything(threads, slice(0, 3))))
    assert all((a[1:2] == b).all() for a, b in zip(alone[:-1], everything(1, slice(1, 2))[:-1]))


def test_shapes_and_dtypes_that_do_not_fit_are_refused(kernel):
    x, scale = paddle.ones([1, 2, 8, 8, 16]), paddle.ones([1, 1, 16])
    with pytest.raises(ValueError, match=r"must be \[\[1, 144, 16\]"):
        kernel.block(x, paddle.ones([1, 143, 16]), scale, scale, True)
    with pytest.raises(ValueError, match="multiple of 16"):
        kernel.block(x, paddle.ones([1, 144, 8]), paddle.ones([1, 1, 8]), paddle.ones([1, 1, 8]), True)
    with pytest.raises(ValueError, match="multiple of 16"):
        kernel.block(paddle.ones([1, 2, 8, 8, 3]), paddle.ones([1, 27, 16]), scale, scale, True)
    with pytest.raises(TypeError, match="float32"):
        kernel.block(
            x.astype("float64"), paddle.ones([1, 144, 16], "float64"), *[scale.astype("float64")] * 2, True
        )
    assert kernel.usable(64, 1) and kernel.usable(16, 3, paddle.float32)
    assert not kernel.usable(8, 1) and not kernel.usable(64, 1, "float64")


@pytest.mark.parametrize("pool", [True, False])
def test_gaps_in_a_tensor_do_no_harm(kernel, pool):
    """A turned view of x, and second derivatives through it."""
    random = np.random.RandomState(1)
    x, *parameters = [
        random.standard_normal(shape) for shape in ([2, 3, 8, 6, 16], [2, 144, 16], [2, 1, 16], [2, 1, 16])
    ]

    def everything(view, x):
        inputs = leaves([x, *parameters])
        out, _ = kernel.block(view(inputs[0]), *inputs[1:], pool)
        first = paddle.grad((out * out).sum(), inputs, create_graph=True)
        return [out.numpy()] + [
            t.numpy() for t in (*first, *paddle.grad(first, inputs, [paddle.ones_like(g) for g in first]))
        ]

    plain = everything(lambda t: t, x)
    turned = everything(lambda t: t.transpose([0, 1, 3, 2, 4]), x.transpose(0, 1, 3, 2, 4))
    for number, (a, b) in enumerate(zip(plain, turned)):
        assert a.shape == b.shape or number in (1, 5)
        assert (a == (b if a.shape == b.shape else b.transpose(0, 1, 3, 2, 4))).all()


# ------------------------------------------------------------------------------------ where it cannot be used


FAST_TO_COMPILE = ["-O0" if flag == "-O3" else flag for flag in native._FLAGS]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and nothing loaded yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(native.SWITCH, raising=False)
    monkeypatch.setattr(native, "_result", None)
    monkeypatch.setattr(native, "_FLAGS", FAST_TO_COMPILE)
    return tmp_path / "cache" / "paddle_maml" / "native"


def fake_compiler(tmp_path, monkeypatch, script):
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "cc").write_text("#!/bin/sh\n" + script)
    (folder / "cc").chmod(0o700)
    monkeypatch.setenv("PATH", str(folder) + os.pathsep + os.environ["PATH"])


def test_it_is_compiled_once_into_a_folder_of_the_user_alone(cache, monkeypatch):
    said = []
    assert native.problem(said.append) is None and native.problem(said.append) is None
    assert len(said) == 1 and "ompiling" in said[0]
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    [library] = cache.iterdir()
    monkeypatch.setattr(native, "_result", None)
    assert native.problem(said.append) is None
    assert len(said) == 1 and list(cache.iterdir()) == [library]


def test_the_switch(cache, monkeypatch):
    monkeypatch.setenv(native.SWITCH, "0")
    assert native.problem() == "PADDLE_MAML_NATIVE is 0"
    assert not cache.exists()


def test_without_a_compiler(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no cc" in native.problem()
    with pytest.raises(RuntimeError, match="no cc"):
        native.block(
            paddle.ones([1, 1, 4, 4, 16]), paddle.ones([1, 144, 16]), *[paddle.ones([1, 1, 16])] * 2, True
        )


def test_with_a_compiler_that_fails(cache, tmp_path, monkeypatch):
    fake_compiler(tmp_path, monkeypatch, "echo 'out of order' >&2; exit 1")
    assert "out of order" in native.problem()
    assert list(cache.iterdir()) == []


def test_with_a_compiler_that_makes_something_wrong(cache, tmp_path, monkeypatch):
    fake_compiler(
        tmp_path,
        monkeypatch,
        f"""
for argument; do case "$argument" in *native.c) sed -i 's/tap % 3 - 1/1 - tap % 3/' "$argument";; esac; done
exec {CC} "$@"
""",
    )
    assert "wrong" in native.problem()


def test_in_a_folder_that_others_can_write(cache):
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    assert "written by others" in native.problem()
    assert list(cache.iterdir()) == []


def test_a_link_in_place_of_the_folder_is_refused(cache, tmp_path):
    cache.parent.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    cache.symlink_to(tmp_path / "elsewhere")
    assert "written by others" in native.problem()


def test_a_library_that_others_can_write_is_refused(cache, monkeypatch):
    assert native.problem() is None
    [library] = cache.iterdir()
    library.chmod(0o777)
    monkeypatch.setattr(native, "_result", None)
    assert "written by others" in native.problem()


def test_a_cache_that_cannot_be_made(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(native, "_result", None)
    assert "could not be made" in native.problem()


@pytest.mark.parametrize("spoil", [lambda data: b"no library", lambda data: data[: len(data) // 2]])
def test_a_damaged_library_is_made_again(cache, tmp_path, spoil):
    """In a process of its own: one that is loaded already would be found by its name. One that is cut short
    can be loaded, and ends the process when it is called."""
    assert native.problem() is None
    [library] = cache.iterdir()
    content = library.read_bytes()
    library.unlink()
    library.write_bytes(spoil(content))
    library.chmod(0o700)
    assert run("print(native.problem())").stdout.strip() == "None"
    assert len(library.read_bytes()) == len(content)


def start(code):
    code = (
        "import paddle_maml\nfrom paddle_maml.engine import device\ndevice.prepare()\nimport paddle\n"
        f"from paddle_maml.kernels import native\nnative._FLAGS = {FAST_TO_COMPILE}\n{code}"
    )
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(native.__file__))))
    return subprocess.Popen([sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, text=True)


def run(code):
    process = start(code)
    output, _ = process.communicate(timeout=300)
    return subprocess.CompletedProcess([], process.returncode, output)


def test_several_processes_at_once(cache):
    processes = [start("print(native.problem())") for _ in range(2)]
    assert [process.communicate(timeout=300)[0].strip() for process in processes] == ["None"] * 2
    assert len(list(cache.iterdir())) == 1


# ------------------------------------------------------------------------------------------------- sanitizers


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["-mno-avx512f", "-mavx2", "-mfma"]] if X86 else [[]])
def test_under_sanitizers(tmp_path, flags):
    """Every function on arrays of the exact size, by a program compiled with AddressSanitizer and
    UndefinedBehaviorSanitizer."""
    program = str(tmp_path / "driver")
    command = [
        CC,
        "-O1",
        "-g",
        "-std=gnu11",
        "-march=native",
        *flags,
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
        "-Wno-psabi",
        "-pthread",
        "-o",
        program,
    ]
    (tmp_path / "empty.c").write_text("int main(void) { return 0; }\n")
    if (
        subprocess.run([*command, str(tmp_path / "empty.c")], capture_output=True).returncode
        or subprocess.run([program], capture_output=True).returncode
    ):
        pytest.skip("this compiler has no sanitizers")
    subprocess.run(
        [*command, os.path.join(FOLDER, "native_driver.c"), native._SOURCE, "-lm"], check=True, timeout=300
    )
    done = subprocess.run([program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().endswith("shapes")


def test_threads_are_the_cores_though_paddle_sets_omp_num_threads(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("PADDLE_MAML_THREADS", raising=False)
    monkeypatch.delenv("PADDLE_LOCAL_SIZE", raising=False)
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert native.cores() == mine
    monkeypatch.setenv("PADDLE_LOCAL_SIZE", str(mine + 1))  # more processes than cores
    assert native.cores() == 1
    monkeypatch.setenv("PADDLE_MAML_THREADS", "3")
    assert native.cores() == 3
