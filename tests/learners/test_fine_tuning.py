"""Fine-tuning: heads by hand and against PyTorch, what moves and what does not, and whose statistics
answer."""

import math

import numpy as np
import paddle
import pytest
from paddle import nn

from paddle_maml.learners.fine_tuning import FineTuningLearner, head_logits, new_head
from paddle_maml.networks.conv4 import Conv4

torch = pytest.importorskip("torch", reason="PyTorch is not installed")


def episode(tasks=2, n_way=3, k_shot=2, k_query=4, shape=(6,), seed=0):
    random = np.random.RandomState(seed)
    y_spt = np.tile(np.repeat(np.arange(n_way), k_shot), [tasks, 1])
    y_qry = np.tile(np.repeat(np.arange(n_way), k_query), [tasks, 1])
    x_spt, x_qry = (random.standard_normal([*y.shape, *shape]) for y in (y_spt, y_qry))
    return x_spt, y_spt, x_qry, y_qry


def images(**options):
    task = episode(shape=(1, 16, 16), **options)
    return [a.astype(np.float32 if a.dtype == float else np.int64) for a in task]


class Twice(nn.Layer):
    """x times one parameter, which is 2."""

    def __init__(self):
        super().__init__()
        self.weight = self.create_parameter([1], default_initializer=nn.initializer.Constant(2.0))

    def forward(self, x):
        return x * self.weight


def test_a_linear_head_by_hand(float64):
    """Two classes at -1 and 1 of one number, twice which is the feature: by symmetry the weights are (-w, w)
    and the biases 0; a step adds rate * 2 * p of the wrong class, whose logit is 4 w below the other."""
    learner = FineTuningLearner(Twice(), steps=5, rate=0.3)
    logits = learner.predict(np.array([[-1.0], [1.0]]), np.array([0, 1]), np.array([[0.5], [-3.0]]))
    w = 0.0
    for _ in range(5):
        w += 0.3 * 2 / (1 + math.exp(4 * w))
    np.testing.assert_allclose(logits, [[-w, w], [6 * w, -6 * w]], atol=1e-12)


def pytorch_logits(features, weight, bias):
    if bias is not None:
        return features @ weight + bias
    cosine = torch.nn.functional.cosine_similarity(features[:, None], weight.T[None], dim=-1)
    return (2 if weight.shape[1] <= 200 else 10) * cosine


@pytest.mark.parametrize("head", ["linear", "cosine"])
@pytest.mark.parametrize("classes", [5, 201])
def test_training_loss_and_gradient_are_pytorchs(float64, head, classes):
    random, layer = np.random.RandomState(0), nn.Linear(6, 4)
    learner = FineTuningLearner(layer, classes, head, features=4)
    x, y = random.standard_normal([2, 7, 6]), random.randint(classes, size=[2, 7])
    loss, accuracy = learner.meta_loss(x, y)
    loss.backward()
    own = [layer.weight, layer.bias, learner.training_weight]
    own += [learner.training_bias] if head == "linear" else []
    body, shift, weight, *bias = (torch.tensor(p.numpy(), requires_grad=True) for p in own)
    features, labels = torch.tensor(x).reshape(14, 6) @ body + shift, torch.tensor(y).flatten()
    logits = pytorch_logits(features, weight, *(bias or [None]))
    expected = torch.nn.functional.cross_entropy(logits, labels)
    expected.backward()
    assert float(loss) == pytest.approx(float(expected.detach()), rel=1e-9)
    assert float(accuracy) == pytest.approx(float((logits.argmax(dim=1) == labels).double().mean()))
    for ours, theirs in zip(own, [body, shift, weight, *bias]):
        np.testing.assert_allclose(ours.grad.numpy(), theirs.grad.numpy(), atol=1e-9)


@pytest.mark.parametrize("head", ["linear", "cosine"])
@pytest.mark.parametrize("adapted", ["head", "all"])
def test_fitting_is_pytorchs(float64, head, adapted):
    """Each task by a plain loop over its parameters."""
    x_spt, y_spt, x_qry, _ = episode()
    layer = nn.Sequential(nn.Linear(6, 5), nn.Tanh())
    learner = FineTuningLearner(layer, head=head, adapted=adapted, steps=4, rate=0.5)
    logits = learner.predict(x_spt, y_spt, x_qry)
    for task in range(2):
        body, shift = (torch.tensor(p.numpy(), requires_grad=adapted == "all") for p in layer.parameters())
        x, labels = torch.tensor(x_spt[task]), torch.tensor(y_spt[task])
        features = torch.tanh(x @ body + shift)
        if head == "cosine":
            directions = torch.nn.functional.normalize(features.detach())
            means = torch.stack([directions[labels == label].mean(dim=0) for label in range(3)])
            weight, bias = torch.nn.functional.normalize(means).T.contiguous().requires_grad_(), None
        else:
            weight = torch.zeros(5, 3, dtype=torch.float64, requires_grad=True)
            bias = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        moving = [p for p in (body, shift, weight, bias) if p is not None and p.requires_grad]
        for _ in range(4):
            logits_ = pytorch_logits(torch.tanh(x @ body + shift), weight, bias)
            gradients = torch.autograd.grad(torch.nn.functional.cross_entropy(logits_, labels), moving)
            with torch.no_grad():
                for p, g in zip(moving, gradients):
                    p -= 0.5 * g
        expected = pytorch_logits(torch.tanh(torch.tensor(x_qry[task]) @ body + shift), weight, bias)
        np.testing.assert_allclose(logits[task], expected.detach().numpy(), atol=1e-8)


def test_a_cosine_head_begins_with_class_means_and_survives_no_features(float64):
    features = paddle.to_tensor([[[3.0, 0.0], [0.0, 0.5], [0.0, 2.0], [0.0, 0.0]]])
    [weight] = new_head(features, paddle.to_tensor([[0, 1, 1, 0]]), "cosine")
    np.testing.assert_allclose(weight.numpy(), [[[1, 0], [0, 1]]], atol=1e-9)
    features.stop_gradient = False
    logits = head_logits(features, [weight])
    np.testing.assert_allclose(logits.numpy(), [[[2, 0], [0, 2], [0, 2], [0, 0]]], atol=1e-8)
    [gradient] = paddle.grad(logits.sum(), features)
    assert np.isfinite(gradient.numpy()).all()


@pytest.mark.parametrize("adapted", ["head", "all"])
def test_no_weight_changes_and_frozen_ones_stay_in_the_fit(adapted):
    paddle.seed(0)
    net = Conv4(width=16, image_size=16)
    learner, task = FineTuningLearner(net, 12, adapted=adapted, steps=3), images()
    learner.settle(*task)
    before = {name: tensor.numpy().copy() for name, tensor in learner.state_dict().items()}
    moving = learner.predict(*task[:3])
    for name, tensor in learner.state_dict().items():
        assert (tensor.numpy() == before[name]).all(), name
    for parameter in net.parameters():
        parameter.stop_gradient = True
    frozen = learner.predict(*task[:3])
    assert (moving == frozen).all() == (adapted == "head")


def test_whose_statistics_answer():
    """The population's, or the support set's where the body moves: an answer is the same alone; "query": it
    is not."""
    paddle.seed(1)
    task = images()
    for adapted, choices in (("head", ("population", "query")), ("all", ("support", "query"))):
        learner = FineTuningLearner(Conv4(width=16, image_size=16), adapted=adapted, steps=5)
        learner.settle(*task)
        x_spt, y_spt, x_qry, y_qry = task
        assert choices == learner.STATISTICS and not learner.transductive
        for statistics in choices:
            learner.statistics = statistics
            together = learner.predict(x_spt, y_spt, x_qry)
            alone = learner.predict(x_spt, y_spt, x_qry[:, :1])
            apart = np.abs(alone[:, 0] - together[:, 0]).max() / np.abs(together).max()
            assert apart > 1e-3 if statistics == "query" else apart < 1e-3
            assert learner.transductive == (statistics == "query")
            scores, losses = learner.finetune(x_spt, y_spt, x_qry, y_qry)
            assert scores.shape == losses.shape == (2, 1)
            expected = (together.argmax(axis=-1) == y_qry).mean(axis=1)
            np.testing.assert_allclose(scores[:, 0], expected, atol=1e-6)


@pytest.mark.parametrize("head", ["linear", "cosine"])
@pytest.mark.parametrize("adapted", ["head", "all"])
def test_more_steps_fit_the_support_set_better(float64, head, adapted):
    x_spt, y_spt, _, _ = episode(n_way=4, k_shot=3)
    net, losses = nn.Linear(6, 20), []
    for steps in (1, 10, 200):
        learner = FineTuningLearner(net, head=head, adapted=adapted, steps=steps, rate=0.5)
        losses.append(learner.finetune(x_spt, y_spt, x_spt, y_spt)[1].mean())
    assert losses[0] > losses[1] + 0.01 > losses[2] + 0.02


def test_a_training_step_by_calling_the_learner():
    paddle.seed(0)
    learner = FineTuningLearner(nn.Linear(6, 4), 3, features=4)
    random = np.random.RandomState(0)
    x, y = random.standard_normal([1, 30, 6]).astype(np.float32), np.arange(30)[None] % 3
    learner._optimizer = paddle.optimizer.Adam(0.05, parameters=learner.parameters())
    losses = [float(learner(x, y)[1][0]) for _ in range(30)]
    assert losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"head": "square"}, "head must be 'linear' or 'cosine', not 'square'"),
        ({"adapted": "body"}, "adapted must be 'head' or 'all'"),
        ({"steps": 0}, "steps must be at least 1 for a linear head"),
        ({"head": "cosine", "steps": -1}, "steps must be at least 0 for a cosine head"),
        ({"rate": 0.0}, "rate must be a finite number above 0"),
        ({"rate": math.inf}, "rate must be a finite number above 0"),
    ],
)
def test_refusals(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        FineTuningLearner(nn.Linear(2, 2), **options)


def test_refusals_of_what_does_not_belong_together():
    x, y = np.zeros([3, 2], np.float32), np.array([0, 1, 2])
    with pytest.raises(ValueError, match="without classes is not trained"):
        FineTuningLearner(nn.Linear(2, 4)).meta_loss(x, y)
    with pytest.raises(ValueError, match="gives 4 numbers for an input, but 64 are expected"):
        FineTuningLearner(nn.Linear(2, 4), 3, features=64).meta_loss(x, y)
    with pytest.raises(ValueError, match="labels must be 0 to 1"):
        FineTuningLearner(nn.Linear(2, 4), 2, features=4).meta_loss(x, y)
    with pytest.raises(ValueError, match="no inner steps"):
        FineTuningLearner(nn.Linear(2, 4)).finetune(x, y, x, y, steps=2)
