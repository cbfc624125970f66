"""Fine-tuning: a network trained to tell all training classes apart, and a new head for a new task.

The "baseline classifier" of Vinyals et al. 2016, "Matching Networks for One Shot Learning", section 4.1, and
Baseline and Baseline++ of Chen et al. 2019, "A Closer Look at Few-shot Classification", section 3. Training
knows no episodes: it is the cross-entropy of labelled images over all classes. A new task gets a head of its
own, fitted on the support set by gradient steps on its mean cross-entropy; the body stays, or moves too.

Chen et al.'s code fits by SGD with momentum and weight decay, on mini-batches of 4 for 100 rounds, from a
random head. Here every step sees the whole support set, so that a task has one answer; that of a linear head
depends on how far the steps go, because the loss of classes that can be told apart has no minimum.
"""

from __future__ import annotations

from typing import Callable

import paddle
from paddle import nn

from ..networks.culprit import leaves
from .embedding import EmbeddingLearner
from .prototypical import prototypes

HEADS = ("linear", "cosine")
# The scale of cosines of Chen et al.'s code: 2 for at most so many classes, and 10 for more, which could not
# come near a loss of zero otherwise.
FEW_CLASSES, SCALE_OF_FEW, SCALE_OF_MANY = 200, 2.0, 10.0
EPSILON = 1e-12  # under a root: the direction of no features is none, and has a gradient


def head_logits(features: paddle.Tensor, head: list[paddle.Tensor]) -> paddle.Tensor:
    """What a head makes of features.

    Args:
        features: (T, N, F).
        head: [weight, bias], (..., F, classes) and (..., 1, classes), of a linear head; [weight] of a cosine
            head: the cosines of features and weights times a scale (Chen et al. 2019, Baseline++; their code
            gives each class a learned norm beside it, which is no cosine any more, and is left out here).

    Returns:
        Logits (T, N, classes).
    """
    weight, *bias = head
    if bias:
        return paddle.matmul(features, weight) + bias[0]
    scale = SCALE_OF_FEW if weight.shape[-1] <= FEW_CLASSES else SCALE_OF_MANY
    return scale * paddle.matmul(_directions(features, -1), _directions(weight, -2))


def new_head(features: paddle.Tensor, labels: paddle.Tensor, kind: str) -> list[paddle.Tensor]:
    """The head that fitting begins with, the same for the same support set: zeros where it is linear; where
    it is cosine, the mean direction of each class's features (Qi et al. 2018, "Low-Shot Learning with
    Imprinted Weights").

    Args:
        features: of the support set, (T, N, F).
        labels: (T, N), whole numbers 0 .. n_way - 1.
        kind: one of `HEADS`.

    Returns:
        Tensors as `head_logits` takes them, with a leading T.
    """
    if kind == "cosine":
        return [_directions(prototypes(_directions(features, -1), labels).transpose([0, 2, 1]), -2)]
    tasks, _, count = features.shape
    classes = int(labels.max()) + 1
    return [paddle.zeros([tasks, rows, classes], features.dtype) for rows in (count, 1)]


def _directions(x, axis):
    return x * paddle.rsqrt((x * x).sum(axis=axis, keepdim=True) + EPSILON)


class FineTuningLearner(EmbeddingLearner):
    """A classifier over all training classes, whose body serves new tasks.

    Args:
        net: the network of the body, such as `Conv4`; what it gives for an input are its features.
        classes: of training; None for a learner that is not trained, which has no head for them.
        head: "linear" or "cosine", in training and for new tasks.
        adapted: "head": the body stays, and batch norm has the statistics of the population, or of the
            episode ("query"). "all": the body moves with the head. Its batch norm then has the statistics of
            the support set while fitting, and those ("support") or, as MAML's, the query set's alone
            ("query") in answering.
        steps: gradient steps of fitting, each on the whole support set.
        rate: their rate.
        features: numbers of features of an input; `net.features` by default.
        chunk, optimizer: as of `Learner`.

    Raises:
        ValueError: head or adapted is none of its values, steps is negative, or 0 of a linear head, which
            begins at zero; rate is not a finite number above 0; and what `Learner` raises.
    """

    TRAINING_ONLY = ("training_weight", "training_bias")

    def __init__(
        self,
        net: nn.Layer,
        classes: int | None = None,
        head: str = "linear",
        adapted: str = "head",
        steps: int = 100,
        rate: float = 0.1,
        features: int | None = None,
        chunk: int | None = None,
        optimizer=None,
    ):
        super().__init__(net, "cross-entropy", chunk, optimizer)
        for name, value, choices in (("head", head, HEADS), ("adapted", adapted, ("head", "all"))):
            if value not in choices:
                raise ValueError(f"{name} must be {' or '.join(map(repr, choices))}, not {value!r}")
        if steps < (head == "linear"):
            raise ValueError(f"steps must be at least {int(head == 'linear')} for a {head} head, not {steps}")
        if not 0 < rate < float("inf"):
            raise ValueError(f"rate must be a finite number above 0, not {rate}")
        self.head, self.adapted, self.steps, self.rate = head, adapted, steps, rate
        if adapted == "all":
            self.STATISTICS = ("support", "query")
        self.training_weight = self.training_bias = None
        if classes is not None:
            features = net.features if features is None else features
            self.training_weight = self.create_parameter([features, classes])
            if head == "linear":
                self.training_bias = self.create_parameter([classes], is_bias=True)

    def meta_loss(self, x, y) -> tuple[paddle.Tensor, paddle.Tensor]:
        """The mean cross-entropy over the training classes, and the accuracy.

        Args:
            x: inputs of one batch (N, ...), or of T of them (T, N, ...), of each of which batch norm has the
                statistics.
            y: labels (N,) or (T, N), whole numbers 0 .. classes - 1.
        """
        if self.training_weight is None:
            raise ValueError("a learner without classes is not trained: give their number")
        batch, losses, scores = self._labelled(x, y)[:2], [], []
        for inputs, labels in self._chunks(batch):
            features, targets = self.embed(inputs).flatten(2), self.objective.targets(labels)
            if features.shape[-1] != self.training_weight.shape[0]:
                raise ValueError(
                    f"the network gives {features.shape[-1]} numbers for an input, but "
                    f"{self.training_weight.shape[0]} are expected"
                )
            head = [p for p in (self.training_weight, self.training_bias) if p is not None]
            logits = head_logits(features, head)
            losses.append(self.objective.loss(logits, targets))
            scores.append(self.objective.score(logits.detach(), targets))
        return paddle.concat(losses).mean(), paddle.concat(scores).mean()

    def _answer(self, x_spt, y_spt, x_qry, statistics):
        """Logits of a head that is fitted on each task's support set, with the body where it is adapted."""
        answer = self._fit_head if self.adapted == "head" else self._fit_all
        return answer(x_spt, y_spt, x_qry, statistics)

    def _fit_head(self, x_spt, y_spt, x_qry, statistics):
        features = self.embed(paddle.concat([x_spt, x_qry], axis=1), statistics).flatten(2)
        support, query = features.split([x_spt.shape[1], x_qry.shape[1]], axis=1)
        targets = self.objective.targets(y_spt)
        head = self._fitted(
            new_head(support, targets.numbers, self.head), lambda head: head_logits(support, head), targets
        )
        return head_logits(query, head)

    def _fit_all(self, x_spt, y_spt, x_qry, statistics):
        network, targets = self.network, self.objective.targets(y_spt)
        prepared, size = network.prepare(x_spt), len(network.theta_names)

        def outputs(theta, inputs=prepared, given=None):
            return head_logits(network.outputs(inputs, theta[:size], given).flatten(2), theta[size:])

        body = network.initial(x_spt.shape[0])
        head = new_head(network.outputs(prepared, body).flatten(2), targets.numbers, self.head)
        named = dict(self.net.named_parameters())
        frozen = [place for place, name in enumerate(network.theta_names) if named[name].stop_gradient]
        theta = self._fitted(body + head, outputs, targets, frozen)
        given = network.statistics(prepared, theta[:size]) if statistics == "support" else None
        return outputs(theta, network.prepare(x_qry), given)

    def _fitted(
        self, theta: list[paddle.Tensor], outputs: Callable[[list], paddle.Tensor], targets, frozen=()
    ) -> list[paddle.Tensor]:
        """Tensors (T, ...) after the gradient steps on each task's own loss; those of the frozen places
        stay."""
        for _ in range(self.steps):
            theta = leaves(theta)
            with paddle.enable_grad():
                # The sum over tasks keeps their gradients apart.
                loss = self.objective.loss(outputs(theta), targets).sum()
                gradients = paddle.grad(loss, theta, allow_unused=True)
            theta = [
                p if g is None or place in frozen else p - self.rate * g
                for place, (p, g) in enumerate(zip(theta, gradients))
            ]
        return theta
