"""What training, evaluation and a user's own loop ask of a learner."""

from __future__ import annotations

import numpy as np
import paddle
from paddle import nn

from ..networks.task_network import task_network
from ..objectives import Objective, objective

# Tasks side by side. On a GPU launches count.
GPU_TOGETHER = 32


class Learner(nn.Layer):
    """A network that learns from tasks how to solve further ones.

    `STATISTICS` are the choices that `predict` has for what batch norm knows when it answers; the first is
    the default, until the attribute `statistics` names another. `TRAINING_ONLY` are the names in `state_dict`
    of what only training needs: weights that are kept go without it.

    Its methods take one task or T of them side by side, and answer in kind: inputs x (N, ...) or (T, N, ...),
    labels y (N,) or (T, N), or the targets of a regression (N, n) or (T, N, n).

    Args:
        net: the network, any layer, see `task_network`; None for a learner that has none.
        loss: "cross-entropy", "mean-square", a function of the outputs and targets of one task, or an
            `Objective`.
        chunk: tasks computed side by side; by default what suits the network and the device. It changes time
            and memory only.
        optimizer: what calling the learner steps with; Adam with rate 0.001 unless given.

    Raises:
        ValueError: the network has no parameters, the loss is none, or chunk is below 1.
    """

    STATISTICS = ("query",)
    TRAINING_ONLY = ()

    def __init__(self, net: nn.Layer | None, loss="cross-entropy", chunk: int | None = None, optimizer=None):
        super().__init__()
        if chunk is not None and chunk < 1:
            raise ValueError(f"chunk must be at least 1, not {chunk}")
        self.net = net
        # Not by the usual way, which would register the same parameters twice.
        object.__setattr__(self, "network", None if net is None else task_network(net))
        self.objective: Objective = objective(loss)
        self.on_cpu = paddle.get_device() == "cpu"
        self.chunk = chunk or (self.network.together if net is not None and self.on_cpu else GPU_TOGETHER)
        self._optimizer = optimizer
        self.statistics = None

    def meta_loss(self, x_spt, y_spt, x_qry, y_qry) -> tuple[paddle.Tensor, paddle.Tensor]:
        """(loss, score) of a meta-batch, means over its tasks, 0-d tensors; `loss.backward()` leaves the
        meta-gradient in the parameters."""
        raise NotImplementedError

    def predict(self, x_spt, y_spt, x_qry, statistics: str | None = None) -> np.ndarray:
        """Outputs for the query inputs of each task, (T, N, ...).

        Args:
            statistics: what batch norm knows when it answers, one of the learner's `STATISTICS`.
        """
        raise NotImplementedError

    def finetune(
        self, x_spt, y_spt, x_qry, y_qry, steps: int | None = None, every_step: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """(scores, losses) of each task's query set, float64 (T, K + 1): column k is after k inner steps. A
        learner without steps, as here, has one column, and `steps` must be None; and so has one with steps
        if not `every_step`, after the last."""
        if steps is not None:
            raise ValueError(f"steps is {steps}, but {type(self).__name__} has no inner steps")
        return self._scores(x_spt, y_spt, x_qry, y_qry)

    def _scores(self, x_spt, y_spt, x_qry, y_qry, **options):
        """What `finetune` returns, of the answers of `predict`."""
        batch, single = self._task_set(x_spt, y_spt, x_qry, y_qry)
        *task, y_qry = batch
        with paddle.no_grad():
            outputs, targets = paddle.to_tensor(self.predict(*task, **options)), self.objective.targets(y_qry)
            scores, losses = [
                measure(outputs, targets).numpy().astype(np.float64).reshape([-1, 1])
                for measure in (self.objective.score, self.objective.loss)
            ]
        return (scores[0], losses[0]) if single else (scores, losses)

    def settle(self, *batch) -> None:
        """Take from a training batch, as `meta_loss` has it, what the weights need beside themselves before
        they are scored or kept; here nothing."""

    @property
    def transductive(self) -> bool:
        """Whether the answer for a query input depends on the others."""
        together = self.network is not None and self.network.batch_statistics
        return together and self._choice_of(None) == "query"

    def forward(self, *batch, score_steps: bool = False) -> list[np.ndarray]:
        """One meta-step on a meta-batch, the arrays that `meta_loss` takes.

        Returns:
            (scores, losses), means over the tasks: after 0 .. K inner steps if `score_steps`, which takes K +
            1 passes over the query set, else one value each, after step K.
        """
        scored = self.finetune(*batch) if score_steps else None
        if self._optimizer is None:
            self._optimizer = paddle.optimizer.Adam(learning_rate=0.001, parameters=self.parameters())
        loss, score = self.meta_loss(*batch)
        loss.backward()
        self._optimizer.step()
        self._optimizer.clear_grad()
        if scored is None:
            return [np.array([float(score)]), np.array([float(loss)])]
        return [values if values.ndim == 1 else values.mean(axis=0) for values in scored]

    def state_dict(self, *args, **kwargs) -> dict:
        """The network's state under the network's own names, so that its weights load without the learner;
        and what the learner itself has learned."""
        state = {} if self.net is None else self.net.state_dict(*args, **kwargs)
        return {**state, **self._learned()}

    def set_state_dict(self, state_dict: dict, *args, **kwargs) -> tuple[list, list]:
        """The inverse of `state_dict`; a state without what the learner has learned leaves that as it is."""
        state = dict(state_dict)
        for name, tensor in self._learned().items():
            if name in state:
                tensor.set_value(state.pop(name))
        return ([], list(state)) if self.net is None else self.net.set_state_dict(state, *args, **kwargs)

    def _learned(self):
        """What the learner itself has beside the network, by name."""
        return {name: tensor for name, tensor in super().state_dict().items() if not name.startswith("net.")}

    # -------------------------------------------------------------------------------------------------- input

    def _choice_of(self, statistics):
        """One of `STATISTICS`."""
        statistics = statistics or self.statistics or self.STATISTICS[0]
        if statistics not in self.STATISTICS:
            raise ValueError(f"statistics must be one of {', '.join(self.STATISTICS)}, not {statistics!r}")
        return statistics

    def _inputs(self, x):
        """Inputs as a tensor of the network's dtype, or of integers where they are."""
        tensor = x if isinstance(x, paddle.Tensor) else paddle.to_tensor(x)
        if 0 in tensor.shape:
            raise ValueError(f"there must be inputs, but their shape is {tuple(tensor.shape)}")
        if not paddle.is_floating_point(tensor):
            return tensor
        # ReLU and maximum take NaN for zero: the loss would not show it.
        if not bool(paddle.isfinite(tensor).all()):
            raise ValueError("inputs must be finite numbers; some are infinite or NaN")
        parameters = (self if self.net is None else self.net).parameters()
        return tensor.astype(parameters[0].dtype if parameters else paddle.get_default_dtype())

    def _labelled(self, x, y):
        """Inputs and targets as tensors (T, N, ...), and whether they are of one task."""
        x, y = self._inputs(x), y if isinstance(y, paddle.Tensor) else paddle.to_tensor(y)
        axes = self.objective.target_axes
        if axes is None:
            axes = 1 if paddle.is_floating_point(y) else 0
            if axes and y.ndim == 2 and x.ndim == 3:  # (T, N) or (N, n)?
                raise ValueError(
                    "targets of a regression must be (T, N, n), or (N, n) for one task, not "
                    f"{tuple(y.shape)} for inputs {tuple(x.shape)}"
                )
        single = y.ndim == axes + 1
        if single:
            x, y = x.unsqueeze(0), y.unsqueeze(0)
        if y.ndim != axes + 2 or x.shape[:2] != y.shape[:2] or 0 in y.shape:
            x_shape, y_shape = (tuple(tensor.shape[1:] if single else tensor.shape) for tensor in (x, y))
            wanted = "which must be (N, n) or (T, N, n)" if axes else "which must be (N,) or (T, N)"
            raise ValueError(f"inputs {x_shape} and targets {y_shape}, {wanted}, do not belong together")
        return x, y, single

    def _task_set(self, x_spt, y_spt, x_qry, y_qry=None):
        """The arrays of tasks as tensors (T, N, ...), without the query set's targets where there are none,
        and whether they are of one task."""
        x_spt, y_spt, single = self._labelled(x_spt, y_spt)
        if y_qry is None:
            query = [self._inputs(x_qry).unsqueeze(0) if single else self._inputs(x_qry)]
        else:
            *query, single_query = self._labelled(x_qry, y_qry)
        tasks = [x_spt.shape[0], query[0].shape[0] if query[0].ndim > 1 else 0]
        if tasks[0] != tasks[1] or (y_qry is not None and single_query != single):
            raise ValueError(
                "support and query set must be of the same tasks, (N, ...) or (T, N, ...), "
                f"not {tuple(x_spt.shape)} and {tuple(query[0].shape)}"
            )
        return [x_spt, y_spt, *query], single

    def _chunks(self, arrays):
        for start in range(0, arrays[0].shape[0], self.chunk):
            yield [array[start : start + self.chunk] for array in arrays]
