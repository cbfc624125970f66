"""MAML: learn initial weights from which a few gradient steps on a support set solve a new task (Finn et al.
2017).

The inner loop is one pure step, theta_{k+1} = theta_k - r_k * g(theta_k), where g is the gradient of the
support loss. The meta-gradient of the query loss at theta_K goes back through a step as

    v_k = v_{k+1} - H(theta_k) (r_k * v_{k+1}),        v_K = gradient of the query loss at theta_K,

with H the Hessian of the support loss. So the exact gradient needs theta_0 .. theta_K and one Hessian-vector
product for each
step, not the unrolled graph: memory grows by the parameters alone as steps are added. First order leaves the
    product out.
"""

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn
from paddle.autograd import PyLayer

from ..kernels import operators

# Tasks that go through the network side by side. On a GPU launches count. On a CPU small sets of images gain
# by company, but of large query sets two stay best in the cache: 150 images of 5-way tasks with 15 a class.
CPU_CHUNK, CPU_QUERY_CHUNK, CPU_QUERY_IMAGES = 8, 2, 150
# Second order keeps the parameters after every inner step. Where they are many, half as many tasks take the
# memory of few steps.
MANY_STEPS = 8
GPU_CHUNK = 32

# Inner steps, the last ones, whose graph is kept from the way there for the way back; those of others are
# made again. More would save time and let the memory grow with the steps.
KEPT_GRAPHS = 2

# What batch norm may know in testing, see `MetaLearner.predict`.
STATISTICS = ("query", "support", "one")


class MetaLearner(nn.Layer):
    """MAML over a network with explicit parameters.

    Args:
        net: a `MAML` network.
        inner_steps: gradient steps K of the adaptation.
        inner_lr: the inner learning rate, on the mean cross-entropy of the support set.
        order: 2 for the exact meta-gradient, 1 for the first-order approximation.
        chunk: tasks computed side by side; by default 8 on a CPU (4 with many inner steps) and 32 on a GPU.
            It changes time and memory only. On a CPU the query sets of a chunk follow each other where they
            are large.
        learn_inner_lr: learn one inner rate for every parameter tensor and step, all starting at `inner_lr`
            (Antoniou et al. 2019, "LSLR"; Li et al. 2017 learn one for each weight). They are in
            `inner_rates`, (K, tensors).
        adapted: "all", or "head": the inner loop changes the linear layer alone (Raghu et al. 2020, ANIL);
            the meta-gradient still reaches everything.
        optimizer: what calling the learner steps with; Adam with rate 0.001 unless given.

    Raises:
        ValueError: inner_steps or chunk is below 1, inner_lr is negative or not finite, or order or adapted
            is none of its values.
    """

    def __init__(
        self,
        net,
        inner_steps=5,
        inner_lr=0.1,
        order=2,
        chunk=None,
        learn_inner_lr=False,
        adapted="all",
        optimizer=None,
    ):
        super().__init__()
        if inner_steps < 1:
            raise ValueError(f"inner_steps must be at least 1, not {inner_steps}")
        if not 0 <= inner_lr < float("inf"):
            raise ValueError(f"inner_lr must be a finite number that is not negative, not {inner_lr}")
        if order not in (1, 2):
            raise ValueError(f"order must be 1 or 2, not {order}")
        if adapted not in ("all", "head"):
            raise ValueError(f"adapted must be 'all' or 'head', not {adapted!r}")
        if chunk is not None and chunk < 1:
            raise ValueError(f"chunk must be at least 1, not {chunk}")
        self.net = net
        self.inner_steps, self.inner_lr, self.order = inner_steps, inner_lr, order
        self._adapts = [adapted == "all" or name.startswith("linear.") for name in net.packed_names]
        self._on_cpu = paddle.get_device() == "cpu"
        cpu_chunk = CPU_CHUNK // 2 if inner_steps > MANY_STEPS else CPU_CHUNK
        self.chunk = chunk or (cpu_chunk if self._on_cpu else GPU_CHUNK)
        self.inner_rates = None
        if learn_inner_lr:
            self.inner_rates = self.create_parameter(
                [inner_steps, len(net.packed_names)], default_initializer=nn.initializer.Constant(inner_lr)
            )
        self._optimizer = optimizer

    # -------------------------------------------------------------------------------------------------------
    # public

    def meta_loss(self, x_spt, y_spt, x_qry, y_qry, order=None, step_weights=None):
        """Query loss after adaptation, the mean over the tasks of a meta-batch, ready for `backward()`.

        The gradients are computed here, chunk by chunk, and handed to the parameters by `loss.backward()`.

        Args:
            x_spt, x_qry: support and query images (T, N, C, H, W).
            y_spt, y_qry: their labels (T, N), int64, 0 .. n_way - 1.
            order: 1 or 2 for this call; the learner's own by default.
            step_weights: K + 1 weights of the query losses after 0 .. K inner steps (the multi-step loss of
                Antoniou et al. 2019); by default the loss after step K alone.

        Returns:
            The loss, of step K or the weighted sum of `step_weights`, and the accuracy after step K (a
            fraction), 0-d tensors.

        Raises:
            ValueError: arrays that do not belong together, images of another size or with numbers that are
                not finite, labels that are not whole numbers or outside the classes, another order, or a
                wrong number of weights.
        """
        order = self.order if order is None else order
        if order not in (1, 2):
            raise ValueError(f"order must be 1 or 2, not {order}")
        if step_weights is None:
            step_weights = [0.0] * self.inner_steps + [1.0]
        if len(step_weights) != self.inner_steps + 1:
            raise ValueError(f"step_weights must be {self.inner_steps + 1} numbers, not {len(step_weights)}")
        batch = self._episodes(x_spt, y_spt, x_qry, y_qry)
        tasks = batch[0].shape[0]
        totals = None
        for chunk in self._chunks(batch):
            sums = self._chunk_gradients(*chunk, order, step_weights)
            totals = sums if totals is None else [total + part for total, part in zip(totals, sums)]
        loss, accuracy, *gradients = [total / tasks for total in totals]
        return _WithGradients.apply(loss, *self._by_parameter(gradients), *self.parameters()), accuracy

    def adapt(self, x_spt, y_spt, steps=None):
        """Parameters adapted to a support set; the network's own stay as they are.

        Args:
            x_spt, y_spt: (N, C, H, W) and (N,) for one task, or with a leading T.
            steps: inner steps; `inner_steps` by default.

        Returns:
            Tensors shaped and ordered as `net.parameters()`, with a leading T where x_spt has one: `net(x,
            params)` uses them.
        """
        x_spt, y_spt = self._labelled(x_spt, y_spt)
        single = x_spt.ndim == 4
        if single:
            x_spt, y_spt = x_spt.unsqueeze(0), y_spt.unsqueeze(0)
        adapted = []
        for x, y in self._chunks((x_spt, y_spt)):
            [*_, theta] = self._trajectory(self._inputs(x, y), self._initial(x.shape[0]), steps)
            biases = [
                parameter.detach().unsqueeze(0).expand([x.shape[0]] + parameter.shape)
                for name, parameter in self.net.named_parameters()
                if name.endswith("conv_bias")
            ]
            adapted.append(self.net.unpack(theta, biases))
        params = [paddle.concat(parts) for parts in zip(*adapted)]
        return [p.squeeze(0) for p in params] if single else params

    def finetune(self, x_spt, y_spt, x_qry, y_qry, steps=None):
        """Adapt to each task and score its query set after every inner step; no weight changes (the
        competition's `finetunning`).

        Args:
            x_spt, y_spt, x_qry, y_qry: as for `meta_loss`.
            steps: inner steps; `inner_steps` by default.

        Returns:
            (accuracies, losses), float64 arrays (T, steps + 1): column k is after k inner steps.
        """
        accuracies, losses = [], []
        for x_spt, y_spt, x_qry, y_qry in self._chunks(self._episodes(x_spt, y_spt, x_qry, y_qry)):
            queries = self._queries(x_qry, y_qry)
            scores = [
                self._score(theta, queries)
                for theta in self._trajectory(
                    self._inputs(x_spt, y_spt), self._initial(x_spt.shape[0]), steps
                )
            ]
            accuracies.append(np.stack([accuracy for accuracy, _ in scores], axis=1))
            losses.append(np.stack([loss for _, loss in scores], axis=1))
        return np.concatenate(accuracies), np.concatenate(losses)

    def predict(self, x_spt, y_spt, x_qry, steps=None, statistics="query"):
        """Adapt to each task and classify its query images.

        Args:
            x_spt, y_spt, x_qry: as for `meta_loss`.
            steps: inner steps; `inner_steps` by default.
            statistics: what batch norm knows when it classifies: "query", the whole query set, as everywhere
                else here and in the published protocols; "support", the support set and no query image;
                "one", the support set and the one query image that is classified (Nichol et al. 2018, section
                6.1, "non-transductive").

        Returns:
            Logits, an array (T, N, n_way).
        """
        if statistics not in STATISTICS:
            raise ValueError(f"statistics must be one of {', '.join(STATISTICS)}, not {statistics!r}")
        logits = []
        for x_spt, y_spt, x_qry in self._chunks(self._episodes(x_spt, y_spt, x_qry)):
            [*_, theta] = self._trajectory(self._inputs(x_spt, y_spt), self._initial(x_spt.shape[0]), steps)
            for task in range(x_spt.shape[0]):
                own = slice(task, task + 1)
                with paddle.no_grad():
                    logits.append(
                        self._classify([p[own] for p in theta], x_spt[own], x_qry[own], statistics).numpy()
                    )
        return np.concatenate(logits)

    def _classify(self, theta, x_spt, x_qry, statistics):
        """Logits (1, N, n_way) of one task's query images."""
        net = self.net
        if statistics == "query":
            return net.logits(net.first_windows(x_qry), theta)
        if statistics == "support":
            return net.logits(
                net.first_windows(x_qry), theta, net.statistics(net.first_windows(x_spt), theta)
            )
        logits, images = [], x_qry.squeeze(0)
        for start in range(0, images.shape[0], self.chunk):
            part = images[start : start + self.chunk].unsqueeze(1)
            count = part.shape[0]
            batch = paddle.concat([x_spt.expand([count] + x_spt.shape[1:]), part], axis=1)
            logits.append(
                net.logits(net.first_windows(batch), [p.expand([count] + p.shape[1:]) for p in theta])[:, -1]
            )
        return paddle.concat(logits).unsqueeze(0)

    def forward(self, x_spt, y_spt, x_qry, y_qry, score_steps=False):
        """One meta-step on a meta-batch.

        Returns:
            (accuracies, losses), means over the tasks: after 0 .. K inner steps if `score_steps`, which takes
            K + 1 passes over the query set, else one value each, after step K.
        """
        if score_steps:
            scores = [score.mean(axis=0) for score in self.finetune(x_spt, y_spt, x_qry, y_qry)]
        if self._optimizer is None:
            self._optimizer = paddle.optimizer.Adam(learning_rate=0.001, parameters=self.parameters())
        loss, accuracy = self.meta_loss(x_spt, y_spt, x_qry, y_qry)
        loss.backward()
        self._optimizer.step()
        self._optimizer.clear_grad()
        return scores if score_steps else [np.array([float(accuracy)]), np.array([float(loss)])]

    def state_dict(self, *args, **kwargs):
        """The network's state under the network's own names, so that its weights load without the learner;
        and `inner_rates` when they are learned."""
        state = self.net.state_dict(*args, **kwargs)
        if self.inner_rates is not None:
            state["inner_rates"] = self.inner_rates
        return state

    def set_state_dict(self, state_dict, *args, **kwargs):
        """The inverse of `state_dict`; a state without `inner_rates` leaves them as they are."""
        state = dict(state_dict)
        if self.inner_rates is not None and "inner_rates" in state:
            self.inner_rates.set_value(state.pop("inner_rates"))
        return self.net.set_state_dict(state, *args, **kwargs)

    # ------------------------------------------------------------------------------------------------ the
    # inner loop

    def _inputs(self, x, y):
        """Images and labels as the network and the loss want them, made once for all inner steps."""
        with paddle.no_grad():
            return self.net.first_windows(x), F.one_hot(y, self.net.n_way).astype(x.dtype)

    def _queries(self, x, y):
        """The query sets of a chunk in smaller chunks, each with the slice of tasks that it is of."""
        together = max(CPU_QUERY_CHUNK, CPU_QUERY_IMAGES // x.shape[1]) if self._on_cpu else x.shape[0]
        parts = [slice(start, start + together) for start in range(0, x.shape[0], together)]
        return [(part, self._inputs(x[part], y[part])) for part in parts]

    def _initial(self, tasks):
        """theta_0: the network's own parameters, packed, for each of so many tasks."""
        with paddle.no_grad():
            return self.net.pack(self.net.parameters(), tasks)

    def _loss(self, theta, images_and_targets):
        windows, targets = images_and_targets
        logits = self.net.logits(windows, theta)
        return operators.cross_entropy(logits, targets), logits

    def _gradient(self, theta, support, create_graph=False):
        """Gradient of each task's loss by its own parameters (the sum over tasks keeps them apart)."""
        with paddle.enable_grad():
            loss, _ = self._loss(theta, support)
            return paddle.grad(loss.sum(), theta, create_graph=create_graph)

    def _rates(self, step):
        """The inner rates of a step, one for each packed tensor; past the last learned step, that step's."""
        if self.inner_rates is None:
            rates = [self.inner_lr] * len(self._adapts)
        else:
            rates = self.inner_rates[min(step, self.inner_steps - 1)].tolist()
        return [rate if adapts else 0.0 for rate, adapts in zip(rates, self._adapts)]

    def _trajectory(self, support, theta, steps=None, graphs=None):
        """Yield theta_0 .. theta_steps: the only inner loop there is.

        A dict `graphs` is given the gradients of the last steps, by step, so that they can be differentiated.
        """
        theta, steps = _leaves(theta), self.inner_steps if steps is None else steps
        if steps < 0:
            raise ValueError(f"steps must not be negative, not {steps}")
        yield theta
        for step in range(steps):
            keep = graphs is not None and step >= steps - KEPT_GRAPHS
            gradient = self._gradient(theta, support, create_graph=keep)
            if keep:
                graphs[step] = gradient
            with paddle.no_grad():
                theta = _leaves([p - rate * g for p, rate, g in zip(theta, self._rates(step), gradient)])
            yield theta

    def _query_gradient(self, theta, queries):
        """Sums over the tasks of loss and accuracy, and the loss's gradient by theta."""
        losses, accuracies, gradients = [], [], []
        for part, query in queries:
            own = _leaves([p[part] for p in theta])
            with paddle.enable_grad():
                loss, logits = self._loss(own, query)
                gradients.append(paddle.grad(loss.sum(), own))
            losses.append((loss.detach() + _nan_unless_finite(own)).sum())
            accuracies.append(_accuracies(logits.detach(), query).sum())
        return sum(losses), sum(accuracies), [paddle.concat(parts) for parts in zip(*gradients)]

    def _chunk_gradients(self, x_spt, y_spt, x_qry, y_qry, order, step_weights):
        """Sums over the tasks of a chunk: loss, accuracy, then the meta-gradient of every packed tensor and
        of the rates."""
        support, queries = self._inputs(x_spt, y_spt), self._queries(x_qry, y_qry)
        graphs = {} if order == 2 else None
        thetas = list(self._trajectory(support, self._initial(x_spt.shape[0]), graphs=graphs))
        loss, accuracy, vector = self._query_gradient(thetas[-1], queries)
        loss, vector = loss * step_weights[-1], [v * step_weights[-1] for v in vector]
        rate_gradients = []
        for step in reversed(range(self.inner_steps)):
            theta, backward = thetas[step], vector
            if order == 2:
                gradient = graphs.pop(step, None) or self._gradient(theta, support, create_graph=True)
            elif self.inner_rates is not None:
                gradient = self._gradient(theta, support)
            if order == 2:
                product = paddle.grad(
                    gradient, theta, [rate * v for rate, v in zip(self._rates(step), vector)]
                )
                backward = [v - p for v, p in zip(vector, product)]
            if self.inner_rates is not None:
                rate_gradients.insert(
                    0,
                    -paddle.stack(
                        [
                            (v * g.detach()).sum() * adapts
                            for v, g, adapts in zip(vector, gradient, self._adapts)
                        ]
                    ),
                )
            vector = backward
            if step_weights[step]:
                step_loss, _, gradient = self._query_gradient(theta, queries)
                loss = loss + step_loss * step_weights[step]
                vector = [v + g * step_weights[step] for v, g in zip(vector, gradient)]
        sums = [loss, accuracy] + [v.sum(axis=0, keepdim=True) for v in vector]
        return sums + ([paddle.stack(rate_gradients)] if rate_gradients else [])

    def _by_parameter(self, gradients):
        """Packed gradients as the learner's parameters are ordered and shaped."""
        count = len(self.net.packed_names)
        biases = [
            paddle.zeros([1] + parameter.shape, parameter.dtype)
            for name, parameter in self.net.named_parameters()
            if name.endswith("conv_bias")
        ]
        by_name = dict(
            zip(
                [id(p) for p in self.net.parameters()],
                [g.squeeze(0) for g in self.net.unpack(gradients[:count], biases)],
            )
        )
        if self.inner_rates is not None:
            by_name[id(self.inner_rates)] = gradients[count]
        return [by_name[id(parameter)] for parameter in self.parameters()]

    def _score(self, theta, queries):
        """Accuracy and loss of each task, two float64 arrays (T,)."""
        accuracies, losses = [], []
        with paddle.no_grad():
            for part, query in queries:
                own = [p[part] for p in theta]
                loss, logits = self._loss(own, query)
                accuracies.append(_accuracies(logits, query).numpy())
                losses.append((loss + _nan_unless_finite(own)).numpy())
        return np.concatenate(accuracies).astype(np.float64), np.concatenate(losses).astype(np.float64)

    # ---------------------------------------------------------------------------------------------------------- input

    def _images(self, images):
        tensor = images if isinstance(images, paddle.Tensor) else paddle.to_tensor(images)
        tensor = tensor.astype(self.net.linear.weight.dtype)
        self.net.check_images(tensor if tensor.ndim == 5 else tensor.unsqueeze(0))
        # ReLU and maximum take NaN for zero: the loss would not show it.
        if not bool(paddle.isfinite(tensor).all()):
            raise ValueError("images must hold finite numbers; some are infinite or NaN")
        return tensor

    def _labelled(self, images, labels):
        images, labels = (
            self._images(images),
            labels if isinstance(labels, paddle.Tensor) else paddle.to_tensor(labels),
        )
        if not (paddle.is_integer(labels) or labels.dtype == paddle.bool):
            raise ValueError(f"labels must be whole numbers, not {labels.dtype}")
        labels = labels.astype("int64")
        if list(images.shape[:-3]) != list(labels.shape) or 0 in labels.shape:
            raise ValueError(
                f"images {tuple(images.shape)} and labels {tuple(labels.shape)} do not belong together"
            )
        if int(labels.min()) < 0 or int(labels.max()) >= self.net.n_way:
            raise ValueError(
                f"labels must be 0 to {self.net.n_way - 1}, not {int(labels.min())} to {int(labels.max())}"
            )
        return [images, labels]

    def _episodes(self, x_spt, y_spt, x_qry, y_qry=None):
        """A meta-batch as tensors; without the labels of the query images where there are none."""
        batch = self._labelled(x_spt, y_spt) + (
            [self._images(x_qry)] if y_qry is None else self._labelled(x_qry, y_qry)
        )
        support, query = batch[0].shape, batch[2].shape
        if len(support) != 5 or len(query) != 5 or support[0] != query[0]:
            raise ValueError(
                f"support and query images must be (T, N, C, H, W) with the same T, not {tuple(support)} and {tuple(query)}"
            )
        return batch

    def _chunks(self, batch):
        for start in range(0, batch[0].shape[0], self.chunk):
            yield [array[start : start + self.chunk] for array in batch]


class _WithGradients(PyLayer):
    """A loss whose gradients are known already: backward hands them over."""

    @staticmethod
    def forward(ctx, loss, *gradients_and_parameters):
        count = len(gradients_and_parameters) // 2
        ctx.gradients = gradients_and_parameters[:count]
        ctx.frozen = [parameter.stop_gradient for parameter in gradients_and_parameters[count:]]
        return loss.clone()

    @staticmethod
    def backward(ctx, grad):
        constants = (None,) * (1 + len(ctx.gradients))
        return constants + tuple(
            None if frozen else gradient * grad for gradient, frozen in zip(ctx.gradients, ctx.frozen)
        )


def _leaves(tensors):
    leaves = [tensor.detach() for tensor in tensors]
    for leaf in leaves:
        leaf.stop_gradient = False
    return leaves


def _nan_unless_finite(theta):
    """Zero for each task, and NaN for one whose parameters are not finite: ReLU and maximum would hide that
    from its loss."""
    with paddle.no_grad():
        rows = [p.flatten(1) for p in theta]
        return sum(paddle.matmul(row, paddle.zeros([row.shape[1], 1], row.dtype)) for row in rows).squeeze(1)


def _accuracies(logits, query):
    """Accuracy of each task, (T,)."""
    _, targets = query
    return (logits.argmax(axis=-1) == targets.argmax(axis=-1)).astype(logits.dtype).mean(axis=-1)
