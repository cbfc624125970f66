"""Which layer of a network has no second derivative, or a wrong one."""

from __future__ import annotations

import contextlib
from typing import Callable

import numpy as np
import paddle

from ..kernels.differences import default_dtype, floating, hessian_by_differences
from .functional import Functional
from .task_network import TaskNetwork
from .twice_differentiable import REPLACEMENTS, trusted

# How far a Hessian-vector product may be from differences: what is wrong in Paddle is off by per cents.
TOLERANCE = {paddle.float64: 1e-3, paddle.float32: 5e-2}
# Differences that cross a kink are off by any amount, so the best of several steps counts.
_STEPS = {paddle.float64: (3e-8, 1e-8, 3e-9, 1e-6), paddle.float32: (1e-4, 3e-5, 3e-4, 1e-3)}


def product_error(
    gradient_of: Callable[[list[paddle.Tensor], bool], list[paddle.Tensor | None]], theta: list[paddle.Tensor]
) -> float:
    """How far a Hessian-vector product by Paddle's second derivatives is from differences, relative, in the
    tensor of theta where it is farthest, for a random vector.

    Args:
        gradient_of: function (theta, create_graph) to the gradients by theta, None where there is none.
        theta: tensors (1, ...).

    Raises:
        RuntimeError or another of Paddle's types: an operator has no second derivative.
    """
    vectors, theta = _random_like(theta), leaves(theta)
    exact = exact_product(gradient_of(theta, True), theta, vectors)

    def gradient_at(point):
        point = leaves(point)
        return [paddle.zeros_like(p) if g is None else g for p, g in zip(point, gradient_of(point, False))]

    errors = []
    for step in _STEPS[theta[0].dtype]:
        expected = hessian_by_differences(gradient_at, theta, vectors, step)
        whole = max(float(b.norm()) for b in expected)
        if whole == 0:
            return 0.0 if all(float(a.norm()) == 0 for a in exact) else float("inf")
        errors.append(
            max(float((a - b).norm()) / max(float(b.norm()), 0.01 * whole) for a, b in zip(exact, expected))
        )
        if errors[-1] <= TOLERANCE[theta[0].dtype]:
            break
    return min(errors)


def exact_product(
    gradients: list[paddle.Tensor | None], theta: list[paddle.Tensor], vectors: list[paddle.Tensor]
) -> list[paddle.Tensor]:
    """H v by a second derivative.

    Args:
        gradients: by theta, made with `create_graph`; None where theta's tensor does not matter.
        theta, vectors: lists of tensors (T, ...).
    """
    used = [(g, v) for g, v in zip(gradients, vectors) if g is not None and not g.stop_gradient]
    if not used:
        return [paddle.zeros_like(p) for p in theta]
    products = paddle.grad([g for g, _ in used], theta, [v for _, v in used], allow_unused=True)
    return [paddle.zeros_like(p) if h is None else h for p, h in zip(theta, products)]


def culprit(network: TaskNetwork, x: paddle.Tensor) -> tuple[str, bool]:
    """The layer at fault: the innermost one whose own second derivatives are missing or wrong, given what it
    gets for the inputs x (N, ...).

    Returns:
        Its name in the network with its class, or what is at fault instead; and whether
        `twice_differentiable` would mend it.
    """
    if not isinstance(network, Functional):
        return type(network).__name__, False
    inputs = _inputs_of_layers(network, x)
    named = [(name, part) for name, part in network.layer.named_sublayers() if not trusted(part)]
    for name, part in sorted(named, key=lambda pair: -pair[0].count(".")):
        if part in inputs and _at_fault(part, inputs[part]):
            return f"{name} ({type(part).__name__})", type(part) in REPLACEMENTS
    if not network.exact and _at_fault(network.layer, [x.detach()]):
        return f"the forward of {type(network.layer).__name__} itself", False
    return "the loss", False


def _inputs_of_layers(network, x):
    """What each layer got last, as tensors with no past, which are constants (`stop_gradient`) where they do
    not depend on the parameters; layers that got other things are left out."""
    got, hooks = {}, []

    def remember(layer, inputs):
        if inputs and all(isinstance(tensor, paddle.Tensor) for tensor in inputs):
            got[layer] = [tensor.detach() for tensor in inputs]
            for tensor, original in zip(got[layer], inputs):
                tensor.stop_gradient = original.stop_gradient

    try:
        for part in network.layer.sublayers():
            hooks.append(part.register_forward_pre_hook(remember))
        with paddle.enable_grad(), network.using([p.squeeze(0) for p in network.initial(1)]):
            network.layer(x)
    finally:
        for hook in hooks:
            hook.remove()
    return got


def _at_fault(layer, inputs):
    """Whether the second derivatives of a layer by its parameters and its inputs are missing or wrong."""
    owned = [p for p in layer.parameters() if not p.stop_gradient]
    movable = [tensor for tensor in inputs if not tensor.stop_gradient]
    if not owned and not movable:
        return False
    network = Functional(layer) if owned else None

    def gradient_of(point, create_graph):
        with default_dtype(point[0].dtype), paddle.enable_grad():
            tensors = [p.squeeze(0) for p in point]
            others = iter(tensors[len(owned) :])
            dtype = point[0].dtype
            given = [floating(t, dtype) if t.stop_gradient else next(others) for t in inputs]
            with network.using(tensors[: len(owned)]) if network else contextlib.nullcontext():
                outputs = [o for o in _flat(layer(*given)) if paddle.is_floating_point(o)]
            # Not linear in the outputs: their first derivatives matter too.
            weights = [paddle.linspace(0.5, 1.5, o.size, o.dtype).reshape(o.shape) for o in outputs]
            value = sum((o * w * o).sum() for o, w in zip(outputs, weights))
            return paddle.grad(value, point, create_graph=create_graph, allow_unused=True)

    theta = [t.detach().unsqueeze(0) for t in (*owned, *movable)]
    try:
        gradient_of(leaves(theta), False)
    except Exception:  # it was called in another way, with keywords for instance
        return False
    try:
        return product_error(gradient_of, precise(gradient_of, theta)) > TOLERANCE[paddle.float64]
    except Exception:  # Paddle raises many types for a missing second derivative
        return True


def precise(
    gradient_of: Callable[[list[paddle.Tensor], bool], list[paddle.Tensor | None]], theta: list[paddle.Tensor]
) -> list[paddle.Tensor]:
    """Theta in float64, where differences are precise, if the gradient can be had there; else as it is."""
    double = leaves([floating(p, "float64") for p in theta])
    try:
        gradient_of(double, False)
    except Exception:  # a layer that insists on float32 may raise anything
        return leaves(theta)
    return double


def leaves(tensors: list[paddle.Tensor]) -> list[paddle.Tensor]:
    """The tensors as they are, with no past, and to be differentiated by."""
    result = [tensor.detach() for tensor in tensors]
    for leaf in result:
        leaf.stop_gradient = False
    return result


def _flat(outputs):
    if isinstance(outputs, paddle.Tensor):
        return [outputs]
    return (
        [tensor for part in outputs for tensor in _flat(part)] if isinstance(outputs, (list, tuple)) else []
    )


def _random_like(tensors):
    """Random tensors, each as long as the one that it is like, or 1 where that is zero; always the same
    ones."""
    random, result = np.random.RandomState(0), []
    for tensor in tensors:
        values = random.standard_normal(tensor.shape)
        length = float(tensor.detach().norm()) or 1.0
        values *= length / max(float(np.linalg.norm(values)), 1e-12)
        result.append(paddle.to_tensor(values.astype(str(tensor.numpy().dtype))))
    return result
