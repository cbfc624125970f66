"""MAML in MindSpore, a task at a time as a compiled graph, on an export of ../interchange.md. Needs: numpy,
mindspore.

Convolution and pooling are made of slices, products and maxima: MindSpore's own have no float64 on a CPU.

python mindspore_loop.py EXPORT TRACE.npz --order 2 --dtype float64
"""

import argparse
import json
import time
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import ops


def convolution(x, weight, stride):
    """x (N, H, W, C), weight (O, C, 3, 3)."""
    images, height, width, channels = x.shape
    column, row = (
        ops.zeros((images, height, 1, channels), x.dtype),
        ops.zeros((images, 1, width + 2, channels), x.dtype),
    )
    x = ops.cat((row, ops.cat((column, x, column), 2), row), 1)
    rows = ops.cat([x[:, k // 3 : k // 3 + height, k % 3 : k % 3 + width] for k in range(9)], 3)
    if stride == 2:
        rows = ops.gather(ops.gather(rows, ops.arange(0, height, 2), 1), ops.arange(0, width, 2), 2)
    flat = ops.matmul(rows.reshape(-1, 9 * channels), weight.transpose(2, 3, 1, 0).reshape(9 * channels, -1))
    return flat.reshape(*rows.shape[:3], -1)


def corner(x, i, j):
    """Pixel (i, j) of every 2x2 window."""
    images, height, width, channels = x.shape
    return x.reshape(images, height // 2, 2, width // 2, 2, channels)[:, :, i, :, j]


def pooling(x):
    height, width = (2 * (side // 2) for side in x.shape[1:3])
    x = x[:, :height, :width]
    return ops.maximum(
        ops.maximum(corner(x, 0, 0), corner(x, 0, 1)), ops.maximum(corner(x, 1, 0), corner(x, 1, 1))
    )


def logits(theta, x):
    params, epsilon = parts(theta), ms.Tensor(problem["batch_norm_epsilon"], x.dtype)
    strided = problem["architecture"] == "stride"
    x = x.transpose(0, 2, 3, 1)
    for block in range(4):
        weight, bias, scale, shift = params[4 * block : 4 * block + 4]
        x = convolution(x, weight, 2 if strided else 1) + bias
        deviation = x - x.mean((0, 1, 2))
        variance = (deviation * deviation).mean((0, 1, 2))
        x = deviation / ops.sqrt(variance + epsilon) * scale + shift
        x = ops.relu(x) if strided else pooling(ops.relu(x))
    # The linear layer has its features in the order of channels, rows, columns.
    x = x.mean((1, 2)) if strided else x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)
    return ops.matmul(x, params[-2]) + params[-1]


def loss_of(theta, x, y):
    scores = logits(theta, x)
    scores = scores - ops.stop_gradient(scores.max(1, keepdims=True))
    right = (scores * ops.one_hot(y, scores.shape[1]).astype(scores.dtype)).sum(1)
    return (ops.log(ops.exp(scores).sum(1)) - right).mean()


def adapt(theta, x, y, steps):
    """theta_0 .. theta_steps of one task."""
    thetas, rate = [theta], ms.Tensor(problem["inner_lr"], x.dtype)  # a float would be rounded to float32
    for _ in range(steps):
        by_theta = ms.grad(loss_of, 0)(thetas[-1], x, y)
        thetas.append(thetas[-1] - rate * (by_theta if options.order == 2 else ops.stop_gradient(by_theta)))
    return thetas


@ms.jit
def losses_by_step(theta, x_spt, y_spt, x_qry, y_qry):
    """Support and query losses of one task at theta_0 .. theta_K."""
    thetas = adapt(theta, x_spt, y_spt, problem["inner_steps"])
    return [loss_of(theta, x_spt, y_spt) for theta in thetas], [
        loss_of(theta, x_qry, y_qry) for theta in thetas
    ]


def score(theta, x_spt, y_spt, x_qry, y_qry, steps):
    """Query loss and accuracy of one task after its inner steps."""
    theta = adapt(theta, x_spt, y_spt, steps)[-1]
    return loss_of(theta, x_qry, y_qry), (logits(theta, x_qry).argmax(1) == y_qry).astype(x_qry.dtype).mean()


@ms.jit
def tested(theta, *task):
    return score(theta, *task, problem["test_inner_steps"])


def trained(theta, *task):
    return score(theta, *task, problem["inner_steps"])


meta_gradient = ms.jit(ms.value_and_grad(trained, 0, has_aux=True))


def episode(part, number):
    task = []
    for name in ("support", "query"):
        images = part["images"][part[name][number]].astype(np.float32)
        x = images / np.float32(255) * np.float32(2) - np.float32(1)
        task += [ms.Tensor(x.astype(options.dtype)), ms.Tensor(part[f"{name}_labels"])]
    return task


def vector(arrays):
    return ms.Tensor(np.concatenate([array.ravel() for array in arrays]))


def parts(theta):
    """The parameters in a vector."""
    shapes = [parameter["shape"] for parameter in problem["parameters"]]
    ends = np.cumsum([0, *(int(np.prod(shape)) for shape in shapes)]).tolist()
    return [theta[a:b].reshape(shape) for a, b, shape in zip(ends, ends[1:], shapes)]


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
    parameters, size = problem["parameters"], problem["meta_batch"]
    names, trace = [parameter["name"] for parameter in parameters], {}
    params = [weights[name].astype(options.dtype) for name in names]
    moments = [[np.zeros_like(p), np.zeros_like(p)] for p in params]
    by_step = [losses_by_step(vector(params), *episode(episodes, number)) for number in range(size)]
    for name, losses in zip(("support_loss", "query_loss"), zip(*by_step)):
        trace[name] = np.array([[float(loss) for loss in of_task] for of_task in losses])
    by_iteration = {"loss": [], "accuracy": [], "seconds": []}
    for iteration in range(problem["iterations"]):
        tasks = [episode(episodes, iteration * size + number) for number in range(size)]
        began = time.perf_counter()
        results = [meta_gradient(vector(params), *task) for task in tasks]
        by_task = zip(*(parts(gradient) for _, gradient in results))
        gradients = [
            np.mean([g.asnumpy() for g in of_tasks], axis=0) * (not parameter["zero_gradient"])
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
        [float(figure) for figure in tested(vector(params), *episode(test, n))]
        for n in range(len(test["query"]))
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
ms.set_context(mode=ms.PYNATIVE_MODE)
ms.set_device("CPU")

arrays = train(*(dict(np.load(options.export / f"{name}.npz")) for name in ("weights", "train", "test")))
status = Path("/proc/self/status")  # Linux alone has it
peak = status.read_text().split("VmHWM:")[1].split()[0] if status.exists() else 0
about = {
    "format": "paddle_maml trace", "version": 1, "export": problem["id"],
    "order": options.order, "dtype": options.dtype,
    "framework": "MindSpore", "framework_version": ms.__version__,
    "reader": Path(__file__).name, "lines": len(Path(__file__).read_text(encoding="utf-8").splitlines()),
    "memory_bytes": int(peak) * 1024,
}  # fmt: skip
np.savez(options.trace, about=np.frombuffer(json.dumps(about).encode(), np.uint8), **arrays)
