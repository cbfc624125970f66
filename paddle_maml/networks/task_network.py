"""What a learner asks of a network, and how any layer answers."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import paddle
from paddle import nn

from .functional import Functional


class Embedding(NamedTuple):
    """What the part of a network before its last layer makes of inputs, (T, N, F). It stays the same where
    the last layer alone is adapted."""

    features: paddle.Tensor


class TaskNetwork(Protocol):
    """A network that is computed for T tasks side by side, each with parameters of its own.

    *theta* is a list of tensors (T, ...): what the inner loop adapts, laid out as the network likes it.
    `Conv4` and `MAML` (conv4.py) and `MLP` (mlp.py) are such networks; of any other layer `task_network`
    makes one.

    A network whose last layer has the last two tensors of theta may also have `embed(prepared, theta)`, which
    returns an `Embedding`; its `outputs` then take one in the place of prepared inputs.

    Attributes:
        theta_names: the parameter that each tensor of theta holds.
        together: tasks that are best computed side by side on a CPU.
        inputs_together: inputs, over these tasks, that stay best in the cache of a CPU; None for any number.
        batch_statistics: whether an input's output depends on the others that are passed together (batch
            norm).
        exact: whether its second derivatives are known to be exact; where not, a learner that relies on them
            holds one against differences first.
    """

    theta_names: list[str]
    together: int
    inputs_together: int | None
    batch_statistics: bool
    exact: bool

    def prepare(self, x: paddle.Tensor) -> Any:
        """What depends on the inputs x (T, N, ...) alone, made once for all inner steps; ValueError for
        inputs of a wrong shape."""

    def initial(self, tasks: int) -> list[paddle.Tensor]:
        """theta_0, the network's own parameters for each task: differentiable by them."""

    def outputs(
        self, prepared: Any, theta: list[paddle.Tensor], statistics: list[paddle.Tensor] | None = None
    ) -> paddle.Tensor:
        """Outputs (T, N, ...). Batch norm uses the statistics of these inputs, or those that are given; then
        there are no gradients."""

    def statistics(self, prepared: Any, theta: list[paddle.Tensor]) -> list[paddle.Tensor]:
        """What batch norm uses for these inputs, tensors (T, ...) for `outputs`; constants."""

    def neutral_statistics(self) -> list[paddle.Tensor] | None:
        """Statistics of one task, (1, ...), that batch norm changes nothing by; None where they are not
        known beforehand."""

    def parameters_of(self, theta: list[paddle.Tensor]) -> list[paddle.Tensor]:
        """Theta as tensors shaped and ordered as the layer's `parameters()`, with a leading T."""

    def theta_of(self, params: list[paddle.Tensor]) -> list[paddle.Tensor]:
        """The inverse of `parameters_of`."""

    def frozen(self, params: list[paddle.Tensor], statistics_of: paddle.Tensor) -> nn.Layer:
        """The network as a layer of Paddle's own operators, which `paddle.jit.save` takes, with the
        parameters of one task, as `parameters()`, and batch norm that always uses the statistics of these
        inputs (N, ...)."""


def task_network(layer: nn.Layer) -> TaskNetwork:
    """The layer itself where it is a `TaskNetwork`, else one that computes it task by task (`Functional`)."""
    if not isinstance(layer, nn.Layer):
        raise ValueError(f"the network must be a paddle.nn.Layer, not a {type(layer).__name__}")
    return layer if hasattr(layer, "theta_names") else Functional(layer)
