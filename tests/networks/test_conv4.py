"""The network against the same layers of Paddle, and what a user may ask of it."""

import numpy as np
import paddle
import pytest

from paddle_maml import MAML
from paddle_maml.networks.plain_conv4 import plain_conv4


def randomize(net, seed=0):
    random = np.random.RandomState(seed)
    for parameter in net.parameters():
        parameter.set_value(
            (random.standard_normal(parameter.shape) * 0.5).astype(str(parameter.numpy().dtype))
        )


@pytest.mark.parametrize("architecture", ["pool", "stride"])
@pytest.mark.parametrize("image_size, in_channels", [(28, 1), (33, 3), (16, 2)])
def test_logits_equal_plain_paddle(float64, architecture, image_size, in_channels):
    net = MAML(n_way=3, in_channels=in_channels, width=6, image_size=image_size, architecture=architecture)
    randomize(net)
    x = paddle.to_tensor(np.random.RandomState(1).standard_normal((4, in_channels, image_size, image_size)))
    expected = plain_conv4(x, net.parameters(), architecture).numpy()
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(net(x).numpy(), expected, rtol=1e-9, atol=1e-10)


def test_tasks_side_by_side_equal_tasks_one_by_one(float64):
    net = MAML(n_way=3, width=5)
    random = np.random.RandomState(2)
    x = paddle.to_tensor(random.standard_normal((3, 4, 1, 28, 28)))
    params = [paddle.to_tensor(random.standard_normal([3] + list(p.shape))) for p in net.parameters()]
    together = net(x, params).numpy()
    for task in range(3):
        alone = net(x[task], [p[task] for p in params]).numpy()
        np.testing.assert_allclose(together[task], alone, rtol=1e-10, atol=1e-12)
    shared = net(x).numpy()
    np.testing.assert_allclose(shared[1], net(x[1]).numpy(), rtol=1e-10, atol=1e-12)


def test_theta_holds_all_parameters(float64):
    net = MAML(n_way=3, width=5)
    params = [p.unsqueeze(0) for p in net.parameters()]
    for restored, parameter in zip(net.parameters_of(net.theta_of(params)), params):
        np.testing.assert_array_equal(restored.numpy(), parameter.numpy())
    assert len(net.theta_names) == len(net.initial(2))
    assert set(net.theta_names) < {name for name, _ in net.named_parameters()}


def test_parameters_are_in_the_competitions_order():
    shapes = [tuple(p.shape) for p in MAML(n_way=7).parameters()]
    block = [(64, 64, 3, 3), (64,), (64,), (64,)]
    assert shapes == [(64, 1, 3, 3), (64,), (64,), (64,)] + 3 * block + [(64, 7), (7,)]


def test_state_dict_is_complete():
    net = MAML(n_way=5, width=4)
    assert [tuple(v.shape) for v in net.state_dict().values()] == [tuple(p.shape) for p in net.parameters()]


def test_initialisation_is_kaiming_and_xavier():
    paddle.seed(3)
    net = MAML(n_way=5)
    weight = net.block2.conv_weight.numpy()
    assert weight.std() == pytest.approx(np.sqrt(2 / (9 * 64)), rel=0.05)
    assert net.linear.weight.numpy().std() == pytest.approx(np.sqrt(2 / (64 + 5)), rel=0.15)
    assert (net.block1.norm_weight.numpy() == 1).all() and not net.block1.norm_bias.numpy().any()


def test_a_blank_batch_is_finite():
    net = MAML(n_way=5, width=8)
    assert np.isfinite(net(paddle.ones([4, 1, 28, 28])).numpy()).all()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"n_way": 0}, "n_way must be at least 1, not 0"),
        ({"width": -1}, "width must be at least 1, not -1"),
        ({"image_size": 15}, "image_size 15 is too small"),
        ({"architecture": "resnet"}, "not 'resnet'"),
    ],
)
def test_impossible_networks_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MAML(**options)


def test_images_and_parameters_of_a_wrong_shape_are_refused():
    net = MAML(n_way=5, width=4)
    with pytest.raises(ValueError, match=r"images must be \(N, 1, 28, 28\)"):
        net(paddle.ones([2, 1, 27, 28]))
    with pytest.raises(ValueError, match="18 tensors"):
        net(paddle.ones([2, 1, 28, 28]), net.parameters()[:-1])
    params = list(net.parameters())
    params[4] = paddle.ones([4, 4, 3, 2])
    with pytest.raises(ValueError, match=r"params\[4\] must have shape \(4, 4, 3, 3\)"):
        net(paddle.ones([2, 1, 28, 28]), params)
