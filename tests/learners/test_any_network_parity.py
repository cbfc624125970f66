"""The meta-gradient of networks of many kinds against PyTorch's, in float64, for every parameter."""

import numpy as np
import pytest
from networks.pairs import PAIRS, from_torch, inputs, trainable

from paddle_maml.learners.maml import MetaLearner
from paddle_maml.networks.twice_differentiable import twice_differentiable

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

STEPS, RATE = 2, 0.1
# Their true gradient is zero, or nearly: biases before batch norm, and an attention's key bias.
VANISHING = 1e-6


def tasks(name, n_outputs, count=2):
    arrays = []
    for number, seed in ((6, 0), (8, 10)):
        arrays.append(np.stack([inputs(name, number, seed + task) for task in range(count)]))
        arrays.append(np.tile(np.arange(number) % n_outputs, (count, 1)))
    return arrays


def torch_meta_gradient(network, arrays, order):
    """Loss, and gradients by the network's names, through the unrolled graph."""
    params, losses = dict(network.named_parameters()), []

    def loss(weights, x, y):
        outputs = torch.func.functional_call(network, weights, (torch.as_tensor(x),))
        return torch.nn.functional.cross_entropy(outputs, torch.as_tensor(y))

    for x_spt, y_spt, x_qry, y_qry in zip(*arrays):
        fast = params
        for _ in range(STEPS):
            inner = loss(fast, x_spt, y_spt)
            gradients = torch.autograd.grad(inner, list(fast.values()), create_graph=order == 2)
            fast = {name: p - RATE * g for (name, p), g in zip(fast.items(), gradients)}
        losses.append(loss(fast, x_qry, y_qry))
    mean = sum(losses) / len(losses)
    gradients = torch.autograd.grad(mean, list(params.values()))
    return mean.item(), {name: g.numpy() for name, g in zip(params, gradients)}


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("name", PAIRS)
def test_meta_gradient_equals_pytorch(float64, name, order):
    make_paddle, make_torch, _, n_outputs = PAIRS[name]
    ours = make_paddle()
    theirs, arrays = make_torch(ours), tasks(name, n_outputs)
    expected_loss, expected = torch_meta_gradient(theirs, arrays, order)
    expected = from_torch(ours, expected)
    learner = MetaLearner(twice_differentiable(ours), inner_steps=STEPS, inner_lr=RATE, order=order)
    loss, _ = learner.meta_loss(*arrays)
    loss.backward()
    assert float(loss) == pytest.approx(expected_loss, rel=1e-12)
    whole = max(np.linalg.norm(g) for g in expected)
    for (key, parameter), gradient in zip(trainable(ours).items(), expected, strict=True):
        error = np.linalg.norm(parameter.grad.numpy() - gradient)
        assert error <= 1e-9 * max(np.linalg.norm(gradient), VANISHING * whole), key
