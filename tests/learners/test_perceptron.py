"""MAML over the perceptron: its meta-gradient against the algorithm as it is written, and that it learns."""

import numpy as np
import paddle
import pytest

from paddle_maml import MLP, MetaLearner, SinusoidBuilder, meta_batch
from paddle_maml.learners.maml import maml_loss
from paddle_maml.objectives import objective

TASKS, STEPS, INNER_LR = 3, 2, 0.1


def episodes(loss, n_outputs):
    random = np.random.RandomState(4)
    arrays = []
    for count in (6, 9):
        arrays.append(random.standard_normal([TASKS, count, 5]))
        if loss == "cross-entropy":
            arrays.append(np.tile(np.arange(count) % n_outputs, (TASKS, 1)))
        else:
            arrays.append(random.standard_normal([TASKS, count, n_outputs]))
    return arrays


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("loss, batch_norm", [("cross-entropy", True), ("mean-square", False)])
def test_meta_gradient_is_that_of_the_algorithm(float64, loss, batch_norm, order):
    net = MLP(5, (7, 4), 3, batch_norm=batch_norm)
    random = np.random.RandomState(0)
    for parameter in net.parameters():
        parameter.set_value(random.standard_normal(parameter.shape))
    x_spt, y_spt, x_qry, y_qry = (paddle.to_tensor(array) for array in episodes(loss, 3))

    measure = objective(loss)

    def task_loss(theta, x, y):
        return measure.loss(net.outputs(net.prepare(x), theta), measure.targets(y)).sum()

    expected = 0.0
    for task in range(TASKS):
        own = slice(task, task + 1)
        support, query = (x_spt[own], y_spt[own]), (x_qry[own], y_qry[own])
        expected = expected + maml_loss(task_loss, net.initial(1), support, query, STEPS, INNER_LR, order)
    (expected / TASKS).backward()
    gradients = {name: p.grad.numpy() for name, p in net.named_parameters() if name in net.theta_names}
    net.clear_gradients()

    learner = MetaLearner(net, STEPS, INNER_LR, order, loss=loss)
    got, _ = learner.meta_loss(x_spt, y_spt, x_qry, y_qry)
    got.backward()
    assert float(got) == pytest.approx(float(expected) / TASKS, rel=1e-12)
    for name, parameter in net.named_parameters():
        if name in gradients:
            scale = np.abs(gradients[name]).max()
            assert scale > 1e-4
            np.testing.assert_allclose(
                parameter.grad.numpy(), gradients[name], rtol=0, atol=1e-9 * scale, err_msg=name
            )


def test_sinusoids_are_learned():
    """After 400 meta-iterations one step on a new task's 10 points takes a third of the error away."""
    paddle.seed(1)
    net = MLP(1, (40, 40), 1, batch_norm=False)
    for parameter in net.parameters():
        parameter.set_value(parameter * 20)  # the paper's small weights take a thousand iterations to grow
    learner = MetaLearner(net, 1, 0.01, 2, loss="mean-square")
    optimizer = paddle.optimizer.Adam(0.003, parameters=learner.parameters())
    new = meta_batch(SinusoidBuilder(10, 20, seed=2), range(100))
    before = learner.finetune(*new)[1].mean(axis=0)
    tasks = SinusoidBuilder(10, 10, seed=1)
    for iteration in range(400):
        loss, _ = learner.meta_loss(*meta_batch(tasks, range(25 * iteration, 25 * iteration + 25)))
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
    after = learner.finetune(*new)[1].mean(axis=0)
    assert before[1] > 0.9 * before[0]
    assert after[1] < 0.67 * after[0] and after[1] < 0.6 * before[1]
