"""Any layer as a network whose parameters are arguments."""

from __future__ import annotations

import contextlib
import copy
from typing import Iterator

import paddle
from paddle import nn

from ..kernels.differences import floating
from .twice_differentiable import as_it_was, trusted

_BATCH_NORMS = (nn.BatchNorm1D, nn.BatchNorm2D, nn.BatchNorm3D)


class Functional:
    """A layer as a `TaskNetwork`: computed task by task, with the parameters of theta in the place of its
    own.

    The layer is the user's, and what is there is there again after each call: its parameters, and its buffers
    too (batch norm's running statistics do not move). It computes in the mode, `train()` or `eval()`, that it
    is in. Parameters that are frozen (`stop_gradient`) when this is made are constants.

    Args:
        layer: any layer that maps inputs (N, ...) to one tensor (N, ...). It may share parameters, leave some
            unused, and nest other layers.

    Raises:
        ValueError: the layer has no parameters that could be adapted.
    """

    together, inputs_together = 1, None

    def __init__(self, layer: nn.Layer):
        self.layer = layer
        named = [(name, p) for name, p in layer.named_parameters() if not p.stop_gradient]
        if not named:
            raise ValueError(
                f"{type(layer).__name__} has no parameters that could be adapted: there are none, or "
                "all are frozen"
            )
        for name, part in layer.named_sublayers(include_self=True):
            if isinstance(part, nn.Embedding) and part._sparse:
                raise ValueError(
                    f"{name or 'the network'} is an Embedding with sparse=True, whose gradients are none here"
                )
        self.theta_names = [name for name, _ in named]
        self._own = [parameter for _, parameter in named]
        self._places = _places(layer)
        self._all_reached = False

    @property
    def exact(self) -> bool:
        """Whether every layer in it is of a class whose second derivatives are tested."""
        return all(trusted(part) for part in self.layer.sublayers(include_self=True))

    @property
    def batch_statistics(self) -> bool:
        """Whether it has batch norm that uses the statistics of the inputs."""
        return bool(_with_batch_statistics(self.layer))

    def prepare(self, x: paddle.Tensor) -> paddle.Tensor:
        """x itself."""
        return x

    def initial(self, tasks: int) -> list[paddle.Tensor]:
        """theta_0: each trainable parameter, (tasks, ...)."""
        now = {id(p) for p in self.layer.parameters() if not p.stop_gradient}
        if not now <= set(map(id, self._own)):
            name = type(self.layer).__name__
            raise ValueError(f"{name} has other parameters than it had: make the learner anew")
        return [p.unsqueeze(0).expand([tasks, *p.shape]) for p in self._own]

    def outputs(
        self, x: paddle.Tensor, theta: list[paddle.Tensor], statistics: list[paddle.Tensor] | None = None
    ) -> paddle.Tensor:
        """Outputs (T, N, ...) of x (T, N, ...); see `TaskNetwork`."""
        self._reach_all(x)
        results = []
        for task in range(x.shape[0]):
            with self.using([_of_task(p, task) for p in theta]):
                of = None if statistics is None else _of_task(statistics[0], task)
                results.append(self._run(_of_task(x, task), of).unsqueeze(0))
        return results[0] if len(results) == 1 else paddle.concat(results)

    def statistics(self, x: paddle.Tensor, theta: list[paddle.Tensor]) -> list[paddle.Tensor]:
        """The inputs themselves, in a list: their statistics are found when they are wanted."""
        return [x]

    def neutral_statistics(self) -> None:
        """There are none: what a user's layer keeps is not known."""
        return None

    def parameters_of(self, theta: list[paddle.Tensor]) -> list[paddle.Tensor]:
        """As the layer's `parameters()`, with a leading T; frozen ones are repeated."""
        given = dict(zip(map(id, self._own), theta))
        tasks = theta[0].shape[0]
        return [
            given[id(p)] if id(p) in given else p.detach().unsqueeze(0).expand([tasks, *p.shape])
            for p in self.layer.parameters()
        ]

    def theta_of(self, params: list[paddle.Tensor]) -> list[paddle.Tensor]:
        """The inverse of `parameters_of`."""
        trainable = set(map(id, self._own))
        return [given for given, p in zip(params, self.layer.parameters()) if id(p) in trainable]

    def frozen(self, params: list[paddle.Tensor], statistics_of: paddle.Tensor) -> nn.Layer:
        """A copy of the layer as it was before `twice_differentiable`, in the mode `eval()`, see
        `TaskNetwork`."""
        layer = copy.deepcopy(self.layer)
        for own, given in zip(layer.parameters(), params):
            own.set_value(given)
        norms = _with_batch_statistics(layer)
        for part in layer.sublayers(include_self=True):
            if part not in norms:
                part.training = False  # of dropout
        with paddle.no_grad(), _statistics_of(layer, statistics_of):
            pass
        layer.eval()
        return as_it_was(layer)

    @contextlib.contextmanager
    def using(self, theta: list[paddle.Tensor]) -> Iterator[nn.Layer]:
        """The layer with these tensors (without T) as its parameters, in the order of `theta_names`, and with
        copies of its buffers; whatever happens, its own are there again in the end."""
        stand_ins = dict(zip(map(id, self._own), theta))
        try:
            for place, key, tensor, written in self._places:
                if id(tensor) not in stand_ins:
                    # Of theta's dtype, which may be another than the layer's.
                    kept = tensor.detach().clone() if written else tensor.detach()
                    stand_ins[id(tensor)] = floating(kept, theta[0].dtype)
                place[key] = stand_ins[id(tensor)]
            yield self.layer
        finally:
            for place, key, tensor, _ in self._places:
                place[key] = tensor

    def _reach_all(self, x):
        """ValueError if the layer computes with one of its parameters that is not where Paddle keeps them,
        the first
        time: the inner loop would not change it."""
        if self._all_reached:
            return
        draws = paddle.get_rng_state()
        with paddle.enable_grad(), self.using([p.detach() for p in self._own]):
            output = self.layer(_of_task(x[:1], 0).detach())
        paddle.set_rng_state(draws)
        if isinstance(output, paddle.Tensor) and not output.stop_gradient:
            gradients = paddle.grad(output.sum(), self._own, allow_unused=True)
            names = [name for name, g in zip(self.theta_names, gradients) if g is not None]
            raise ValueError(
                f"{type(self.layer).__name__} uses {names[0] if names else 'a parameter'} in a way that is "
                "not seen: a layer must reach its parameters as attributes, not through a dict, a tuple or a "
                "closure"
            )
        self._all_reached = True

    def _run(self, x, statistics_of):
        """The layer's output for one task, checked."""
        if statistics_of is None:
            output = self.layer(x)
        else:
            with paddle.no_grad(), _statistics_of(self.layer, statistics_of):
                output = self.layer(x)
        name = type(self.layer).__name__
        if not isinstance(output, paddle.Tensor):
            raise ValueError(f"{name} must return one tensor, not a {type(output).__name__}")
        if output.ndim == 0 or output.shape[0] != x.shape[0]:
            raise ValueError(
                f"{name} must return an output for each of {x.shape[0]} inputs, not a tensor of shape "
                f"{tuple(output.shape)}"
            )
        return output


def _of_task(tensor, task):
    return tensor.squeeze(0) if tensor.shape[0] == 1 else tensor[task]


def _places(layer):
    """Where a layer and those in it keep their parameters and buffers: (container, key, tensor, whether the
    layer may write to it). Beside Paddle's two dicts that are lists of the layer's own, as in the fused
    nn.LSTM. Paddle keeps running statistics among the parameters, as "_mean"."""
    places, parts = [], layer.sublayers(include_self=True)
    for part in parts:
        for container, is_buffer in ((part._parameters, False), (part._buffers, True)):
            for key, tensor in container.items():
                if tensor is not None and tensor._is_initialized():
                    places.append((container, key, tensor, is_buffer or key.startswith("_")))
    known = {id(tensor): written for _, _, tensor, written in places}
    for part in parts:
        for value in vars(part).values():
            if isinstance(value, list):
                found = [(number, item) for number, item in enumerate(value) if id(item) in known]
                places += [(value, number, item, known[id(item)]) for number, item in found]
    return places


def _with_batch_statistics(layer):
    """The layers of batch norm that use the statistics of their inputs."""
    parts = layer.sublayers(include_self=True)
    return [part for part in parts if isinstance(part, _BATCH_NORMS) and part.training]


@contextlib.contextmanager
def _statistics_of(layer, x):
    """The layer with batch norm that uses the statistics of x, where it would use those of its inputs."""
    norms = _with_batch_statistics(layer)
    momenta = [norm._momentum for norm in norms]
    try:
        for norm in norms:
            norm._momentum = 0.0  # so that the running statistics become those of x
        layer(x)
        for norm in norms:
            norm.training = False
        yield
    finally:
        for norm, momentum in zip(norms, momenta):
            norm._momentum, norm.training = momentum, True
