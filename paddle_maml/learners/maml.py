"""MAML: learn initial weights from which a few gradient steps on a support set solve a new task.

Finn, Abbeel, Levine 2017, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks". The algorithm
is `maml_loss`; `MetaLearner` computes the same for tasks side by side, in little memory:

    theta_{k+1} = theta_k - r_k * g(theta_k),        g the gradient of the support loss, r_k the inner rates;
    v_K = gradient of the query loss at theta_K,
    v_k = v_{k+1} - H(theta_k) (r_k * v_{k+1}),      H the Hessian of the support loss;

v_0 is the meta-gradient. It needs theta_0 .. theta_K and one Hessian-vector product for each step, not the
unrolled graph, so memory grows by the parameters alone as steps are added. First order leaves the product
out.
"""

from __future__ import annotations

import collections
import contextlib
import functools
from typing import Any, Callable, Iterator

import numpy as np
import paddle
from paddle import nn

from ..kernels.differences import default_dtype, floating, hessian_by_differences
from ..networks.culprit import TOLERANCE, culprit, exact_product, leaves, precise, product_error
from ..networks.task_network import Embedding
from .base import Learner


def maml_loss(
    loss: Callable,
    theta: list,
    support: tuple,
    query: tuple,
    inner_steps: int,
    inner_lr: float,
    order: int = 2,
) -> paddle.Tensor:
    """The query loss of one task after adaptation (Finn et al. 2017, algorithm 1), differentiable by theta.

    Args:
        loss: function of theta and the arrays of a set, to a scalar.
        theta: the initial weights, a list of tensors.
        support, query: the arrays of the two sets, tuples.
        order: 2 differentiates through the inner gradients, 1 takes them for constants.
    """
    for _ in range(inner_steps):
        gradients = paddle.grad(loss(theta, *support), theta, create_graph=order == 2)
        theta = [p - inner_lr * g for p, g in zip(theta, gradients)]
    return loss(theta, *query)


def back_through_step(
    vector: list[paddle.Tensor], product_of: Callable[[list], list], rates: list[float]
) -> list[paddle.Tensor]:
    """v_k = v_{k+1} - H(theta_k) (r_k * v_{k+1}), the gradient by the parameters before an inner step from
    that by those after it.

    Args:
        vector: v_{k+1}, a list of tensors shaped as theta.
        product_of: function of such a list to its product with the Hessian of the support loss at theta_k.
        rates: r_k, a number for each tensor.
    """
    product = product_of([rate * v for rate, v in zip(rates, vector)])
    return [v - p for v, p in zip(vector, product)]


# Query sets side by side at least, however large they are.
CPU_QUERY_TASKS = 2
# Every inner step's parameters are kept. Where steps are many, half as many tasks take the memory of few
# steps.
MANY_STEPS = 8
# Inner steps, the last ones, whose graph is kept from the way there for the way back: at least so many, and
# as many as have no more inputs than that, over the tasks side by side. Those of others are made again: all
# would let the memory grow with the steps.
KEPT_GRAPHS, KEPT_INPUTS = 2, 200


class MetaLearner(Learner):
    """MAML over any network.

    Args:
        net: the network, any layer; `MAML` is the four-block network of the paper.
        inner_steps: gradient steps K of the adaptation.
        inner_lr: the inner learning rate, on the mean loss of the support set.
        order: 2 for the exact meta-gradient, 1 for the first-order approximation.
        chunk: as of `Learner`; by default half as many tasks where inner steps are many.
        learn_inner_lr: learn one inner rate for every parameter tensor and step, all starting at `inner_lr`
            (Antoniou et al. 2019, "LSLR"; Li et al. 2017 learn one for each weight). They are in
            `inner_rates`, (K, tensors).
        adapted: which parameters the inner loop changes: "all"; "head", those of the layer that was
            registered last alone (Raghu et al. 2020, ANIL); or a function from a parameter's name to whether
            it does. The meta-gradient still reaches all of them. Frozen ones (`stop_gradient`) are never
            changed.
        optimizer, loss: as of `Learner`.
        hessian: how order 2 gets its Hessian-vector products: "exact", by Paddle's second derivatives, or
            "difference", by central differences of the gradient, which serves layers that have none. That
            takes two more gradients a step, in float64 where the network can compute in it. Held against the
            exact one (tests/learners/test_any_network.py), the meta-gradient of a convolutional network is
            then right to 1e-6, and to 1e-4 where it is float32 otherwise.

    Raises:
        ValueError: inner_steps or chunk is below 1, inner_lr is negative or not finite, order, adapted or
            hessian is none of its values, or no parameter is adapted; and what `Learner` raises.
    """

    STATISTICS = ("query", "support", "one")

    def __init__(
        self,
        net: nn.Layer,
        inner_steps: int = 5,
        inner_lr: float = 0.1,
        order: int = 2,
        chunk: int | None = None,
        learn_inner_lr: bool = False,
        adapted: str | Callable[[str], bool] = "all",
        optimizer=None,
        loss="cross-entropy",
        hessian: str = "exact",
    ):
        super().__init__(net, loss, chunk, optimizer)
        if inner_steps < 1:
            raise ValueError(f"inner_steps must be at least 1, not {inner_steps}")
        if not 0 <= inner_lr < float("inf"):
            raise ValueError(f"inner_lr must be a finite number that is not negative, not {inner_lr}")
        if hessian not in ("exact", "difference"):
            raise ValueError(f"hessian must be 'exact' or 'difference', not {hessian!r}")
        self.inner_steps, self.inner_lr = inner_steps, inner_lr
        self.order, self.hessian = _order(order), hessian
        if chunk is None and self.on_cpu and inner_steps > MANY_STEPS:
            self.chunk = max(1, self.chunk // 2)
        names = self.network.theta_names
        self._adapts = _adapts(names, adapted)
        self._by_name = dict(net.named_parameters())
        self.inner_rates = None
        if learn_inner_lr:
            rates = nn.initializer.Constant(inner_lr)
            self.inner_rates = self.create_parameter([inner_steps, len(names)], default_initializer=rates)
        self._held_in_modes = set()  # of the network's layers, train() or eval()

    # ------------------------------------------------------------------------------------------------- public

    def meta_loss(
        self, x_spt, y_spt, x_qry, y_qry, order: int | None = None, step_weights: list[float] | None = None
    ) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Query loss after adaptation, the mean over the tasks of a meta-batch, ready for `backward()`.

        The meta-gradient is computed here, chunk by chunk; `loss.backward()` hands it to the parameters.

        Args:
            x_spt, x_qry: support and query inputs (T, N, ...), such as images (T, N, C, H, W).
            y_spt, y_qry: labels (T, N), whole numbers 0 .. n_way - 1, or targets as the loss takes them.
            order: 1 or 2 for this call; the learner's own by default.
            step_weights: K + 1 weights of the query losses after 0 .. K inner steps (the multi-step loss of
                Antoniou et al. 2019); by default the loss after step K alone.

        Returns:
            The loss, of step K or the weighted sum of `step_weights`, and the score after step K (the
            accuracy, a fraction, or what the loss has for it), 0-d tensors.

        Raises:
            ValueError: arrays that do not belong together or do not suit the network or the loss, numbers
                that are not finite, another order, a wrong number of weights; or, of order 2, a layer whose
                second derivatives are missing or wrong, by name.
        """
        order = _order(self.order if order is None else order)
        step_weights = [0.0] * self.inner_steps + [1.0] if step_weights is None else step_weights
        if len(step_weights) != self.inner_steps + 1:
            raise ValueError(f"step_weights must be {self.inner_steps + 1} numbers, not {len(step_weights)}")
        batch, _ = self._task_set(x_spt, y_spt, x_qry, y_qry)
        if order == 2 and self.hessian == "exact" and not (self.network.exact and self.objective.exact):
            self._hold_against_differences(batch[0][:1], batch[1][:1])
        return self._with_gradient(
            batch, lambda *chunk: self._meta_gradient(*chunk, order, step_weights), self.inner_rates
        )

    def adapt(self, x_spt, y_spt, steps: int | None = None) -> list[paddle.Tensor]:
        """Parameters adapted to a support set; the network's own stay as they are.

        Args:
            x_spt, y_spt: one task, or tasks with a leading T.
            steps: inner steps; `inner_steps` by default.

        Returns:
            Tensors shaped and ordered as `net.parameters()`, with a leading T where x_spt has one, for
            `outputs`.
        """
        x_spt, y_spt, single = self._labelled(x_spt, y_spt)
        adapted = []
        for x, y in self._chunks((x_spt, y_spt)):
            adapted.append(self.network.parameters_of(last(self._adaptation(x, y, steps))))
        params = [paddle.concat(parts) for parts in zip(*adapted)]
        return [p.squeeze(0) for p in params] if single else params

    def outputs(self, x, params: list[paddle.Tensor], statistics_of=None) -> paddle.Tensor:
        """Outputs of the network with parameters that `adapt` returned: (N, ...) for one task, else (T, N,
        ...). Batch norm uses the statistics of these inputs, or of others, such as the support set."""
        own = self.net.parameters()
        if len(params) != len(own):
            raise ValueError(f"params must be {len(own)} tensors as `adapt` returns them, not {len(params)}")
        single = list(params[0].shape) == list(own[0].shape)
        sets = [self._inputs(inputs) for inputs in (x, statistics_of) if inputs is not None]
        if single:
            sets, params = [inputs.unsqueeze(0) for inputs in sets], [p.unsqueeze(0) for p in params]
        with paddle.no_grad():
            theta, (prepared, *others) = self.network.theta_of(params), map(self.network.prepare, sets)
            statistics = self.network.statistics(others[0], theta) if others else None
            outputs = self.network.outputs(prepared, theta, statistics)
        return outputs.squeeze(0) if single else outputs

    def finetune(
        self, x_spt, y_spt, x_qry, y_qry, steps: int | None = None, every_step: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """Adapt to each task and score its query set after every inner step; no weight changes (the
        competition's `finetunning`).

        Args:
            x_spt, y_spt, x_qry, y_qry: as for `meta_loss`.
            steps: inner steps; `inner_steps` by default.
            every_step: or after the last one alone, which saves as many passes over the query set as there
                are steps.

        Returns:
            (scores, losses), float64 arrays (T, steps + 1), or (steps + 1,) of one task: column k is after k
            inner steps. Scores are accuracies, or what the loss has for them. Without every step, and with
            other `statistics` than the query set's, there is one column, after the last step.
        """
        if self._choice_of(None) != "query":
            return self._scores(x_spt, y_spt, x_qry, y_qry, steps=steps)
        batch, single = self._task_set(x_spt, y_spt, x_qry, y_qry)
        scores, losses = [], []
        for x_spt, y_spt, x_qry, y_qry in self._chunks(batch):
            queries = self._queries(x_qry, y_qry)
            thetas = self._adaptation(x_spt, y_spt, steps)
            by_step = [self._score(theta, queries) for theta in (thetas if every_step else [last(thetas)])]
            scores.append(np.stack([score for score, _ in by_step], axis=1))
            losses.append(np.stack([loss for _, loss in by_step], axis=1))
        scores, losses = np.concatenate(scores), np.concatenate(losses)
        return (scores[0], losses[0]) if single else (scores, losses)

    def predict(
        self, x_spt, y_spt, x_qry, steps: int | None = None, statistics: str | None = None
    ) -> np.ndarray:
        """Adapt to each task and compute the outputs of its query set.

        Args:
            x_spt, y_spt, x_qry: as for `meta_loss`.
            steps: inner steps; `inner_steps` by default.
            statistics: what batch norm knows when it classifies: "query" (the default), the whole query set,
                as everywhere else here and in the published protocols; "support", the support set and no
                query input; "one", the support set and the one query input that is classified (Nichol et al.
                2018, section 6.1, "non-transductive").

        Returns:
            Outputs, such as logits, an array (T, N, n_way), or (N, n_way) of one task.
        """
        statistics = self._choice_of(statistics)
        batch, single = self._task_set(x_spt, y_spt, x_qry)
        outputs = []
        for x_spt, y_spt, x_qry in self._chunks(batch):
            theta = last(self._adaptation(x_spt, y_spt, steps))
            for task in range(x_spt.shape[0]):
                own = slice(task, task + 1)
                with paddle.no_grad():
                    output = self._outputs([p[own] for p in theta], x_spt[own], x_qry[own], statistics)
                outputs.append(output.numpy())
        outputs = np.concatenate(outputs)
        return outputs[0] if single else outputs

    # ----------------------------------------------------------------------------------------- the inner loop

    def _set(self, x, y):
        """Inputs and targets as the network and the loss want them, made once for all inner steps."""
        with paddle.no_grad():
            return self.network.prepare(x), self.objective.targets(y)

    def _queries(self, x, y):
        """The query sets of a chunk in smaller chunks, each with the slice of tasks that it is of."""
        together, most = x.shape[0], self.network.inputs_together
        if self.on_cpu and most:
            together = max(CPU_QUERY_TASKS, most // x.shape[1])
        parts = [slice(start, start + together) for start in range(0, x.shape[0], together)]
        return [(part, self._set(x[part], y[part])) for part in parts]

    def _initial(self, tasks):
        """theta_0 for each of so many tasks, as constants."""
        with paddle.no_grad():
            return self.network.initial(tasks)

    def _loss(self, theta, inputs_and_targets):
        """The loss of each task, (T,), and the outputs."""
        inputs, targets = inputs_and_targets
        outputs = self.network.outputs(inputs, theta)
        return self.objective.loss(outputs, targets), outputs

    def _gradient(self, theta, support, create_graph=False):
        """Gradient of each task's loss by its own parameters (the sum over tasks keeps them apart)."""
        return self._loss_and_gradient(theta, support, create_graph)[-1]

    def _loss_and_gradient(self, theta, inputs_and_targets, create_graph=False):
        """The loss of each task, (T,), the outputs, and the gradient."""
        with paddle.enable_grad():
            loss, outputs = self._loss(theta, inputs_and_targets)
            if loss.stop_gradient:
                raise ValueError("the loss does not depend on the parameters of the network")
            # Paddle 3.3 wants to hear of all that needs a gradient (operators.py).
            inputs = inputs_and_targets[0]
            more = (
                [tensor for tensor in inputs if not tensor.stop_gradient] if type(inputs) is Embedding else []
            )
            gradients = paddle.grad(loss.sum(), theta + more, create_graph=create_graph, allow_unused=True)
        return loss, outputs, [paddle.zeros_like(p) if g is None else g for p, g in zip(theta, gradients)]

    def _moves(self):
        """Which tensors of theta the inner loop changes."""
        names = self.network.theta_names
        return [adapts and not self._by_name[name].stop_gradient for adapts, name in zip(self._adapts, names)]

    def _head_alone(self):
        """Whether all that the inner loop changes is the last layer of a network that can embed: what this
        layer gets of the support set is then the same in all inner steps."""
        return hasattr(self.network, "embed") and not any(self._moves()[:-2])

    def _rates(self, step):
        """The inner rates of a step, one for each tensor of theta; past the last learned step, that
        step's."""
        if self.inner_rates is None:
            rates = [self.inner_lr] * len(self._adapts)
        else:
            rates = self.inner_rates[min(step, self.inner_steps - 1)].tolist()
        return [rate if moved else 0.0 for rate, moved in zip(rates, self._moves())]

    def _adaptation(self, x_spt, y_spt, steps=None):
        """Yield theta_0 .. theta_steps of the adaptation to support sets."""
        theta, support = self._initial(x_spt.shape[0]), self._set(x_spt, y_spt)
        if self._head_alone():
            with paddle.no_grad():
                support = self.network.embed(support[0], theta), support[1]
        return self._trajectory(support, theta, self._count(steps))

    def _count(self, steps):
        """How many inner steps are meant."""
        steps = self.inner_steps if steps is None else steps
        if steps < 0:
            raise ValueError(f"steps must not be negative, not {steps}")
        return steps

    def _trajectory(self, support, theta, steps, graphs=None, draws=None, kept=KEPT_GRAPHS):
        """Yield theta_0 .. theta_steps: the only inner loop there is.

        A dict `graphs` is given the gradients of the `kept` last steps, by step, to be differentiated;
        a dict `draws` the random state before each step, so that dropout can be repeated.
        """
        theta = leaves(theta)
        yield theta
        for step in range(steps):
            keep = graphs is not None and step >= steps - kept
            if draws is not None:
                draws[step] = paddle.get_rng_state()
            gradient = self._gradient(theta, support, create_graph=keep)
            if keep:
                graphs[step] = gradient
            with paddle.no_grad():
                rated = zip(theta, self._rates(step), gradient)
                theta = leaves([p - rate * g if rate else p for p, rate, g in rated])
            yield theta

    # -------------------------------------------------------------------------------------- the meta-gradient

    def _with_gradient(self, batch, sums_of, further=None):
        """Loss and score of a meta-batch, whose `backward()` leaves a given gradient in the parameters.

        Args:
            batch: arrays of tasks.
            sums_of: function of those of a chunk to sums over its tasks: loss, score, and the gradient by
                theta_0 and then by `further`.
            further: a parameter of the learner's own, or None.
        """
        tasks, totals = batch[0].shape[0], None
        for chunk in self._chunks(batch):
            sums = sums_of(*chunk)
            totals = sums if totals is None else [total + part for total, part in zip(totals, sums)]
        loss, score, *gradients = [total / tasks for total in totals]
        # A term of value 0 whose gradient by theta_0 is the given one: the tape takes it to the parameters.
        learned = self.network.initial(1) + ([] if further is None else [further])
        carriers = [(p * g).sum() for p, g in zip(learned, gradients) if not p.stop_gradient]
        if carriers:  # there are none under `no_grad`, or where everything is frozen
            carrier = sum(carriers)
            loss = loss + (carrier - carrier.detach())
        return loss, score

    def _query_gradient(self, theta, queries):
        """Sums over the tasks of loss and score, and the loss's gradient by theta."""
        losses, scores, gradients = [], [], []
        for part, query in queries:
            own = leaves([p[part] for p in theta])
            loss, outputs, gradient = self._loss_and_gradient(own, query)
            gradients.append(gradient)
            losses.append((loss.detach() + _nan_unless_finite(own)).sum())
            scores.append(self.objective.score(outputs.detach(), query[1]).sum())
        return sum(losses), sum(scores), [paddle.concat(parts) for parts in zip(*gradients)]

    def _meta_gradient(self, x_spt, y_spt, x_qry, y_qry, order, step_weights):
        """Sums over the tasks of a chunk: loss, score, then the meta-gradient of theta_0 and of the rates."""
        support, queries = self._set(x_spt, y_spt), self._queries(x_qry, y_qry)
        # What the head gets of the support set counts as one more tensor of theta, which no step changes.
        initial, embedded = leaves(self._initial(x_spt.shape[0])), []
        if self._head_alone() and (order == 1 or self.hessian == "exact"):
            with paddle.set_grad_enabled(order == 2):
                embedding = self.network.embed(support[0], initial)
            embedded = leaves(embedding) if order == 2 else []
            support = Embedding(*(embedded or embedding)), support[1]
        graphs, draws = {} if order == 2 and self.hessian == "exact" else None, {}
        kept = max(KEPT_GRAPHS, KEPT_INPUTS // (x_spt.shape[0] * x_spt.shape[1]))
        thetas = list(self._trajectory(support, initial, self.inner_steps, graphs, draws, kept))
        loss, score, vector = self._query_gradient(thetas[-1], queries)
        loss, vector = loss * step_weights[-1], [v * step_weights[-1] for v in vector]
        vector += [paddle.zeros_like(tensor) for tensor in embedded]
        rate_gradients = []
        for step in reversed(range(self.inner_steps)):
            theta, backward = thetas[step], vector
            gradient = None if graphs is None else graphs.pop(step, None)
            if gradient is None and (graphs is not None or self.inner_rates is not None):
                with _same_draws(draws[step]):
                    gradient = self._gradient(theta, support, create_graph=graphs is not None)
            if order == 2:
                if graphs is None:
                    product_of = self._differences_at(theta, x_spt, y_spt, draws[step])
                else:
                    product_of = functools.partial(exact_product, gradient, [*theta, *embedded])
                rates = self._rates(step) + [0.0] * len(embedded)
                backward = back_through_step(vector, product_of, rates)
            if self.inner_rates is not None:
                moves = self._moves()
                by_rate = [(v * g.detach()).sum() * moved for v, g, moved in zip(vector, gradient, moves)]
                rate_gradients.insert(0, -paddle.stack(by_rate))
            vector = backward
            if step_weights[step]:
                step_loss, _, gradient = self._query_gradient(theta, queries)
                loss = loss + step_loss * step_weights[step]
                gradient += [paddle.zeros_like(tensor) for tensor in embedded]
                vector = [v + g * step_weights[step] for v, g in zip(vector, gradient)]
        if embedded:
            *vector, along = vector
            through = paddle.grad(embedding.features, initial, along, allow_unused=True)
            vector = [v if g is None else v + g for v, g in zip(vector, through)]
        sums = [loss, score] + [v.sum(axis=0, keepdim=True) for v in vector]
        return sums + ([paddle.stack(rate_gradients)] if rate_gradients else [])

    # --------------------------------------------------------------------------------- second derivatives

    def _gradient_of(self, x_spt, y_spt, draws=None):
        """The gradient of the support loss as a function (theta, create_graph), in theta's dtype."""
        draws = draws or paddle.get_rng_state()

        def gradient_of(point, create_graph=False):
            dtype = point[0].dtype
            with default_dtype(dtype), _same_draws(draws):
                support = self._set(floating(x_spt, dtype), floating(y_spt, dtype))
                return self._gradient(leaves(point) if not create_graph else point, support, create_graph)

        return gradient_of

    def _differences_at(self, theta, x_spt, y_spt, draws):
        """The Hessian of the support loss times vectors, as a function of them; computed in float64 where the
        network can."""
        gradient_of = self._gradient_of(x_spt, y_spt, draws)
        point = precise(gradient_of, theta)

        def product_of(vectors):
            product = hessian_by_differences(gradient_of, point, [v.astype(point[0].dtype) for v in vectors])
            return [h.astype(p.dtype) for h, p in zip(product, theta)]

        return product_of

    def _hold_against_differences(self, x_spt, y_spt):
        """ValueError, naming the layer at fault, unless a Hessian-vector product of one task is right."""
        modes = tuple(part.training for part in self.net.sublayers(include_self=True))
        if modes in self._held_in_modes:
            return
        gradient_of, theta = self._gradient_of(x_spt, y_spt), self._initial(1)
        # What fails here is no matter of second derivatives.
        if not all(bool(paddle.isfinite(g).all()) for g in gradient_of(theta)):
            raise ValueError("the gradient of the support loss is not finite")
        point = precise(gradient_of, theta)
        try:
            error = product_error(gradient_of, point)
            if error <= TOLERANCE[point[0].dtype]:
                self._held_in_modes.add(modes)
                return
            problem, cause = f"are wrong by {error:.1%} in this Paddle", None
        except Exception as refusal:  # Paddle raises many types where a second derivative is missing
            problem, cause = "are missing in this Paddle", refusal
        at_fault, convertible = "the loss", False
        if not self.network.exact:
            at_fault, convertible = culprit(self.network, x_spt.squeeze(0))
        remedy = "convert the network with twice_differentiable(layer)" if convertible else "replace it"
        others = "or use hessian='difference' or order=1"
        raise ValueError(f"the second derivatives of {at_fault} {problem}: {remedy}, {others}") from cause

    # ---------------------------------------------------------------------------------------------- the query

    def _outputs(self, theta, x_spt, x_qry, statistics):
        """Outputs (1, N, ...) of one task's query set."""
        prepare, outputs = self.network.prepare, self.network.outputs
        if statistics == "query":
            return outputs(prepare(x_qry), theta)
        if statistics == "support":
            return outputs(prepare(x_qry), theta, self.network.statistics(prepare(x_spt), theta))
        results, inputs = [], x_qry.squeeze(0)
        for start in range(0, inputs.shape[0], self.chunk):
            part = inputs[start : start + self.chunk].unsqueeze(1)
            count = part.shape[0]
            batch = paddle.concat([x_spt.expand([count, *x_spt.shape[1:]]), part], axis=1)
            results.append(outputs(prepare(batch), [p.expand([count, *p.shape[1:]]) for p in theta])[:, -1])
        return paddle.concat(results).unsqueeze(0)

    def _score(self, theta, queries):
        """Score and loss of each task, two float64 arrays (T,)."""
        scores, losses = [], []
        with paddle.no_grad():
            for part, query in queries:
                own = [p[part] for p in theta]
                loss, outputs = self._loss(own, query)
                scores.append(self.objective.score(outputs, query[1]).numpy())
                losses.append((loss + _nan_unless_finite(own)).numpy())
        return np.concatenate(scores).astype(np.float64), np.concatenate(losses).astype(np.float64)


def _order(order):
    if order not in (1, 2):
        raise ValueError(f"order must be 1 or 2, not {order}")
    return order


def _adapts(names, adapted):
    """Whether the inner loop changes each of the tensors."""
    if adapted == "all":
        return [True] * len(names)
    if adapted == "head":
        head = names[-1].rpartition(".")[0]
        return [name.rpartition(".")[0] == head for name in names]
    if not callable(adapted):
        raise ValueError(
            f"adapted must be 'all', 'head' or a function of a parameter's name, not {adapted!r}"
        )
    chosen = [bool(adapted(name)) for name in names]
    if not any(chosen):
        raise ValueError(f"adapted chooses none of the parameters {', '.join(names)}")
    return chosen


def last(trajectory: Iterator) -> Any:
    """The last of what is yielded; the others are let go on the way."""
    return collections.deque(trajectory, maxlen=1).pop()


@contextlib.contextmanager
def _same_draws(state):
    """Paddle's random state is that one inside, and afterwards what it was before."""
    before = paddle.get_rng_state()
    paddle.set_rng_state(state)
    try:
        yield
    finally:
        paddle.set_rng_state(before)


def _nan_unless_finite(theta):
    """Zero for each task, and NaN for one whose parameters are not finite: ReLU and maximum would hide that
    from its loss."""
    with paddle.no_grad():
        rows = [p.flatten(1) for p in theta]
        return sum(paddle.matmul(row, paddle.zeros([row.shape[1], 1], row.dtype)) for row in rows).squeeze(1)
