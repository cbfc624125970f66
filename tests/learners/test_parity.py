"""The meta-gradient against PyTorch's, in float64, for every parameter."""

import numpy as np
import pytest
import reference_torch as reference

from paddle_maml import MAML, MetaLearner

CONV_BIASES = (1, 5, 9, 13)


def paddle_meta_gradient(width, params, episodes, order, steps, network=None, **options):
    net = MAML(n_way=reference.N_WAY, width=width, **(network or {}))
    net.set_state_dict(dict(zip(net.state_dict(), params)))
    learner = MetaLearner(net, inner_steps=steps, inner_lr=reference.INNER_LR, order=order, **options)
    loss, _ = learner.meta_loss(*episodes)
    loss.backward()
    return float(loss), [p.grad.numpy() for p in net.parameters()]


def assert_equal_gradients(ours, theirs):
    whole = np.sqrt(sum(np.sum(g**2) for g in theirs))
    assert whole > 0.01
    for number, (a, b) in enumerate(zip(ours, theirs)):
        if number in CONV_BIASES:
            # Batch norm removes them: the true gradient is zero. Ours is; PyTorch's is what rounding left
            # (1e-15 of the whole).
            assert not a.any() and np.linalg.norm(b) <= 1e-13 * whole
            continue
        allowed = 1e-10 * max(np.linalg.norm(b), 1e-6 * whole)
        assert np.linalg.norm(a - b) <= allowed, (
            f"parameter {number}: {np.linalg.norm(a - b):.3g} > {allowed:.3g}"
        )


@pytest.mark.parametrize("chunk", [1, 2, 3])
@pytest.mark.parametrize("order, steps", reference.CASES)
def test_meta_gradient_equals_golden(float64, order, steps, chunk):
    golden = np.load(reference.GOLDEN_FILE)
    loss, gradients = paddle_meta_gradient(
        reference.GOLDEN_WIDTH,
        reference.make_parameters(reference.GOLDEN_WIDTH),
        reference.make_episodes(),
        order,
        steps,
        chunk=chunk,
    )
    assert loss == pytest.approx(float(golden[f"order{order}_steps{steps}_loss"]), rel=1e-12)
    assert_equal_gradients(gradients, [golden[f"order{order}_steps{steps}_{i:02d}"] for i in range(18)])


@pytest.mark.parametrize(
    "order, steps",
    [pytest.param(*case, marks=() if case == (2, 2) else pytest.mark.slow) for case in reference.CASES],
)
def test_meta_gradient_equals_pytorch_at_full_width(float64, order, steps):
    pytest.importorskip("torch", reason="PyTorch is not installed; the golden figures stand for it")
    params, episodes = reference.make_parameters(64), reference.make_episodes()
    loss, gradients = paddle_meta_gradient(64, params, episodes, order, steps)
    expected_loss, expected = reference.meta_gradient(params, episodes, order, steps)
    assert loss == pytest.approx(expected_loss, rel=1e-12)
    assert_equal_gradients(gradients, expected)


@pytest.mark.parametrize("order", [1, 2])
def test_meta_gradient_of_anil_equals_pytorch(float64, order):
    """The body, 16 of the 18 parameters, gets a gradient through the head's steps."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    params, episodes = reference.make_parameters(8), reference.make_episodes()
    loss, gradients = paddle_meta_gradient(8, params, episodes, order, 3, adapted="head")
    expected_loss, expected = reference.meta_gradient(params, episodes, order, 3, fixed=16)
    assert loss == pytest.approx(expected_loss, rel=1e-12)
    assert_equal_gradients(gradients, expected)
    whole = reference.meta_gradient(params, episodes, order, 3)[1]
    assert np.linalg.norm(whole[12] - expected[12]) > 0.01 * np.linalg.norm(expected[12])


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(
    "architecture, image_size, features",
    [("pool", 35, 4 * 8), ("pool", 19, 8), ("stride", 28, 8), ("stride", 19, 8)],
)
def test_meta_gradient_of_other_networks_equals_pytorch(float64, architecture, image_size, features, order):
    """Odd sizes, where a row is left over by the pooling, and colour images."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    random = np.random.RandomState(3)
    episodes = [
        random.standard_normal((2, count, 3, image_size, image_size))
        if images
        else np.tile(np.arange(count) % reference.N_WAY, (2, 1))
        for count in (5, 10)
        for images in (True, False)
    ]
    params = reference.make_parameters(8, in_channels=3, features=features)
    network = {"architecture": architecture, "image_size": image_size, "in_channels": 3}
    loss, gradients = paddle_meta_gradient(8, params, episodes, order, 2, network)
    expected_loss, expected = reference.meta_gradient(params, episodes, order, 2, architecture=architecture)
    assert loss == pytest.approx(expected_loss, rel=1e-12)
    assert_equal_gradients(gradients, expected)
