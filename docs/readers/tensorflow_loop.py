"""MAML in TensorFlow, a compiled function for a task, on an export of ../interchange.md. Needs: numpy,
tensorflow.

python tensorflow_loop.py EXPORT TRACE.npz --order 2 --dtype float64
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import tensorflow as tf


def mean(x):
    """Over all pixels; at once TensorFlow adds them up one by one, which costs float32 a digit and more."""
    return tf.reduce_mean(tf.reduce_mean(x, (1, 2)), 0)


def logits(params, x):
    stride = 2 if problem["architecture"] == "stride" else 1
    x = tf.transpose(x, (0, 2, 3, 1))
    for block in range(4):
        weight, bias, scale, shift = params[4 * block : 4 * block + 4]
        # By hand: TensorFlow's "SAME" pads a convolution of stride 2 otherwise.
        x = tf.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        x = tf.nn.conv2d(x, tf.transpose(weight, (2, 3, 1, 0)), stride, "VALID") + bias
        # Not by tf.nn.moments: it takes the mean for a constant in the variance, whose second derivative is
        # then wrong.
        x = x - mean(x)
        variance = mean(x * x)
        x = x * tf.math.rsqrt(variance + problem["batch_norm_epsilon"]) * scale + shift
        x = tf.nn.relu(x)
        x = tf.nn.max_pool2d(x, 2, 2, "VALID") if stride == 1 else x
    # The linear layer has its features in the order of channels, rows, columns.
    x = (
        tf.reduce_mean(x, (1, 2))
        if stride == 2
        else tf.reshape(tf.transpose(x, (0, 3, 1, 2)), (x.shape[0], -1))
    )
    return x @ params[-2] + params[-1]


def loss_of(params, x, y):
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits(params, x)))


def adapt(params, x, y, steps):
    """theta_0 .. theta_steps of one task."""
    thetas = [params]
    for _ in range(steps):
        with tf.GradientTape() as tape:
            tape.watch(thetas[-1])
            loss = loss_of(thetas[-1], x, y)
        gradients = tape.gradient(loss, thetas[-1])
        gradients = [tf.stop_gradient(g) for g in gradients] if options.order == 1 else gradients
        thetas.append([p - problem["inner_lr"] * g for p, g in zip(thetas[-1], gradients)])
    return thetas


@tf.function
def losses_by_step(params, x_spt, y_spt, x_qry, y_qry):
    """Support and query losses of one task at theta_0 .. theta_K."""
    thetas = adapt(params, x_spt, y_spt, problem["inner_steps"])
    return [tf.stack([loss_of(theta, *one) for theta in thetas]) for one in ((x_spt, y_spt), (x_qry, y_qry))]


@tf.function
def score(params, x_spt, y_spt, x_qry, y_qry, steps):
    """Query loss and accuracy of one task after its inner steps."""
    theta = adapt(params, x_spt, y_spt, steps)[-1]
    hits = tf.equal(tf.argmax(logits(theta, x_qry), 1, tf.int32), y_qry)
    return loss_of(theta, x_qry, y_qry), tf.reduce_mean(tf.cast(hits, options.dtype))


@tf.function
def meta_gradient(params, x_spt, y_spt, x_qry, y_qry, steps):
    """What `score` returns, and the gradient by the initial parameters."""
    with tf.GradientTape() as tape:
        tape.watch(params)
        loss, accuracy = score(params, x_spt, y_spt, x_qry, y_qry, steps)
    return (loss, accuracy), tape.gradient(loss, params)


def episode(part, number):
    task = []
    for name in ("support", "query"):
        images = part["images"][part[name][number]].astype(np.float32)
        x = images / np.float32(255) * np.float32(2) - np.float32(1)
        task += [tf.constant(x.astype(options.dtype)), tf.constant(part[f"{name}_labels"])]
    return task


def tensors(arrays):
    return [tf.constant(array) for array in arrays]


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
    by_step = [losses_by_step(tensors(params), *episode(episodes, number)) for number in range(size)]
    trace.update(zip(("support_loss", "query_loss"), (np.array(losses, float) for losses in zip(*by_step))))
    by_iteration = {"loss": [], "accuracy": [], "seconds": []}
    for iteration in range(problem["iterations"]):
        tasks = [episode(episodes, iteration * size + number) for number in range(size)]
        began = time.perf_counter()
        results = [meta_gradient(tensors(params), *task, steps=steps) for task in tasks]
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
        score(tensors(params), *episode(test, n), steps=problem["test_inner_steps"])
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

arrays = train(*(dict(np.load(options.export / f"{name}.npz")) for name in ("weights", "train", "test")))
status = Path("/proc/self/status")  # Linux alone has it
peak = status.read_text().split("VmHWM:")[1].split()[0] if status.exists() else 0
about = {
    "format": "paddle_maml trace", "version": 1, "export": problem["id"],
    "order": options.order, "dtype": options.dtype,
    "framework": "TensorFlow", "framework_version": tf.__version__,
    "reader": Path(__file__).name, "lines": len(Path(__file__).read_text(encoding="utf-8").splitlines()),
    "memory_bytes": int(peak) * 1024,
}  # fmt: skip
np.savez(options.trace, about=np.frombuffer(json.dumps(about).encode(), np.uint8), **arrays)
