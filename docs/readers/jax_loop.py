"""MAML in JAX, a compiled program for a task, on an export of ../interchange.md. Needs: numpy, jax.

python jax_loop.py EXPORT TRACE.npz --order 2 --dtype float64
"""

import argparse
import functools
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def logits(params, x):
    strided = problem["architecture"] == "stride"
    stride, layout = (2, 2) if strided else (1, 1), ("NHWC", "OIHW", "NHWC")
    x = x.transpose(0, 2, 3, 1)
    for block in range(4):
        weight, bias, scale, shift = params[4 * block : 4 * block + 4]
        x = lax.conv_general_dilated(x, weight, stride, ((1, 1), (1, 1)), dimension_numbers=layout) + bias
        mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
        x = (x - mean) * lax.rsqrt(variance + problem["batch_norm_epsilon"]) * scale + shift
        x = jax.nn.relu(x)
        if not strided:
            x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    # The linear layer has its features in the order of channels, rows, columns.
    x = x.mean((1, 2)) if strided else x.transpose(0, 3, 1, 2).reshape(len(x), -1)
    return x @ params[-2] + params[-1]


def loss_of(params, x, y):
    scores = jax.nn.log_softmax(logits(params, x))
    return -jnp.take_along_axis(scores, y[:, None], axis=1).mean()


def adapt(params, x, y, steps):
    """theta_0 .. theta_steps of one task."""
    thetas = [params]
    for _ in range(steps):
        gradients = jax.grad(loss_of)(thetas[-1], x, y)
        gradients = lax.stop_gradient(gradients) if options.order == 1 else gradients
        thetas.append([p - problem["inner_lr"] * g for p, g in zip(thetas[-1], gradients)])
    return thetas


@jax.jit
def losses_by_step(params, x_spt, y_spt, x_qry, y_qry):
    """Support and query losses of one task at theta_0 .. theta_K."""
    thetas = adapt(params, x_spt, y_spt, problem["inner_steps"])
    return [jnp.stack([loss_of(theta, *one) for theta in thetas]) for one in ((x_spt, y_spt), (x_qry, y_qry))]


@functools.partial(jax.jit, static_argnames="steps")
def score(params, x_spt, y_spt, x_qry, y_qry, steps):
    """Query loss and accuracy of one task after its inner steps."""
    theta = adapt(params, x_spt, y_spt, steps)[-1]
    right = logits(theta, x_qry).argmax(1) == y_qry
    return loss_of(theta, x_qry, y_qry), right.mean(dtype=x_qry.dtype)


def episode(part, number):
    task = []
    for name in ("support", "query"):
        images = part["images"][part[name][number]].astype(np.float32)
        x = images / np.float32(255) * np.float32(2) - np.float32(1)
        task += [jnp.asarray(x.astype(options.dtype)), jnp.asarray(part[f"{name}_labels"])]
    return task


def adam_step(params, moments, gradients, iteration):
    """Adam as ../interchange.md writes it."""
    beta1, beta2, epsilon = (problem["adam"][name] for name in ("beta1", "beta2", "epsilon"))
    result = []
    for p, moment, g in zip(params, moments, gradients):
        moment[0] = beta1 * moment[0] + (1 - beta1) * g
        moment[1] = beta2 * moment[1] + (1 - beta2) * g * g
        mean, square = moment[0] / (1 - beta1 ** (iteration + 1)), moment[1] / (1 - beta2 ** (iteration + 1))
        result.append(p - problem["meta_lr"][iteration] * mean / (np.sqrt(square) + epsilon))
    return result


def train(weights, episodes, test):
    parameters, size, steps = problem["parameters"], problem["meta_batch"], problem["inner_steps"]
    names, trace = [parameter["name"] for parameter in parameters], {}
    params = [weights[name].astype(options.dtype) for name in names]
    moments = [[np.zeros_like(p), np.zeros_like(p)] for p in params]
    meta_gradient = jax.jit(jax.value_and_grad(score, has_aux=True), static_argnames="steps")
    by_step = [losses_by_step(params, *episode(episodes, number)) for number in range(size)]
    trace.update(zip(("support_loss", "query_loss"), (np.array(losses, float) for losses in zip(*by_step))))
    by_iteration = {"loss": [], "accuracy": [], "seconds": []}
    for iteration in range(problem["iterations"]):
        tasks = [episode(episodes, iteration * size + number) for number in range(size)]
        began = time.perf_counter()
        results = [meta_gradient(params, *task, steps=steps) for task in tasks]
        by_task = zip(*(gradients for _, gradients in results))
        gradients = [
            np.mean([np.asarray(g) for g in of_tasks], axis=0) * (not parameter["zero_gradient"])
            for parameter, of_tasks in zip(parameters, by_task)
        ]
        if iteration == 0:
            trace.update({f"gradient/{name}": g for name, g in zip(names, gradients)})
        params = [p.astype(options.dtype) for p in adam_step(params, moments, gradients, iteration)]
        figures = (
            *np.mean([[float(loss), float(hits)] for (loss, hits), _ in results], axis=0),
            time.perf_counter() - began,
        )
        for values, figure in zip(by_iteration.values(), figures):
            values.append(figure)
        if iteration + 1 in problem["weights_after"]:
            trace.update({f"weights_after_{iteration + 1}/{name}": p for name, p in zip(names, params)})
    tests = [
        score(params, *episode(test, n), steps=problem["test_inner_steps"]) for n in range(len(test["query"]))
    ]
    trace.update(zip(("test_loss", "test_accuracy"), np.array(tests, float).T))
    return {**trace, **{name: np.array(values) for name, values in by_iteration.items()}}


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("export", type=Path)
parser.add_argument("trace", type=Path)
parser.add_argument("--order", type=int, choices=(1, 2), default=2)
parser.add_argument("--dtype", choices=("float32", "float64"), default="float64")
options = parser.parse_args()
problem = json.loads((options.export / "interchange.json").read_text(encoding="utf-8"))
if (problem["format"], problem["version"]) != ("paddle_maml interchange", 1):
    raise SystemExit("This reads version 1 of the format.")
jax.config.update("jax_enable_x64", options.dtype == "float64")

arrays = train(*(dict(np.load(options.export / f"{name}.npz")) for name in ("weights", "train", "test")))
status = Path("/proc/self/status")  # Linux alone has it
peak = status.read_text().split("VmHWM:")[1].split()[0] if status.exists() else 0
about = {
    "format": "paddle_maml trace", "version": 1, "export": problem["id"],
    "order": options.order, "dtype": options.dtype,
    "framework": "JAX", "framework_version": jax.__version__,
    "reader": Path(__file__).name, "lines": len(Path(__file__).read_text(encoding="utf-8").splitlines()),
    "memory_bytes": int(peak) * 1024,
}  # fmt: skip
np.savez(options.trace, about=np.frombuffer(json.dumps(about).encode(), np.uint8), **arrays)
