"""MAML in PyTorch by torch.func: all tasks at once, on an export of ../interchange.md. Needs: numpy, torch.

python pytorch_func.py EXPORT TRACE.npz --order 2 --dtype float64
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.func import grad, grad_and_value, vmap


def logits(params, x):
    strided = problem["architecture"] == "stride"
    for block in range(4):
        weight, bias, scale, shift = params[4 * block : 4 * block + 4]
        x = F.conv2d(x, weight, bias, stride=2 if strided else 1, padding=1)
        # By hand: PyTorch 2.13's own batch norm has a wrong second derivative under vmap.
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0, keepdim=True)
        x = (x - mean) * torch.rsqrt(variance + problem["batch_norm_epsilon"])
        x = F.relu(x * scale[:, None, None] + shift[:, None, None])
        x = x if strided else F.max_pool2d(x, 2)
    x = x.mean((2, 3)) if strided else x.flatten(1)
    return x @ params[-2] + params[-1]


def loss_of(params, x, y):
    return F.cross_entropy(logits(params, x), y)


def adapt(params, x, y, steps):
    """theta_0 .. theta_steps of one task."""
    thetas = [params]
    for _ in range(steps):
        gradients = grad(loss_of)(thetas[-1], x, y)
        gradients = [g.detach() for g in gradients] if options.order == 1 else gradients
        thetas.append([p - problem["inner_lr"] * g for p, g in zip(thetas[-1], gradients)])
    return thetas


def losses_by_step(params, x_spt, y_spt, x_qry, y_qry):
    """Support and query losses of one task at theta_0 .. theta_K."""
    thetas = adapt(params, x_spt, y_spt, problem["inner_steps"])
    sets = (x_spt, y_spt), (x_qry, y_qry)
    return [torch.stack([loss_of(theta, *one) for theta in thetas]) for one in sets]


def scores(params, tasks, steps):
    """Query losses and accuracies (T,) after the inner steps."""

    def of_task(x_spt, y_spt, x_qry, y_qry):
        outputs = logits(adapt(params, x_spt, y_spt, steps)[-1], x_qry)
        return F.cross_entropy(outputs, y_qry), (outputs.argmax(1) == y_qry).double().mean()

    return vmap(of_task)(*tasks)


def meta_loss(params, tasks):
    losses, accuracies = scores(params, tasks, problem["inner_steps"])
    return losses.mean(), accuracies.mean()


def episodes_of(part, first, count):
    """x_spt (T, N, C, H, W), y_spt (T, N), x_qry, y_qry."""
    tasks = []
    for name in ("support", "query"):
        images = part["images"][part[name][first : first + count]].astype(np.float32)
        x = images / np.float32(255) * np.float32(2) - np.float32(1)
        labels = torch.tensor(part[f"{name}_labels"]).long()
        tasks += [torch.tensor(x.astype(options.dtype)), labels.expand(len(x), -1)]
    return tasks


def train(weights, episodes, test):
    names = [parameter["name"] for parameter in problem["parameters"]]
    params = [torch.tensor(weights[name].astype(options.dtype)) for name in names]
    adam = problem["adam"]
    optimizer = torch.optim.Adam(params, betas=(adam["beta1"], adam["beta2"]), eps=adam["epsilon"])
    size, trace, by_iteration = problem["meta_batch"], {}, {"loss": [], "accuracy": [], "seconds": []}
    first = episodes_of(episodes, 0, size)
    by_step = vmap(losses_by_step, in_dims=(None, 0, 0, 0, 0))(params, *first)
    trace.update(zip(("support_loss", "query_loss"), (losses.double().numpy() for losses in by_step)))
    for iteration in range(problem["iterations"]):
        tasks = episodes_of(episodes, iteration * size, size)
        began = time.perf_counter()
        gradients, (loss, accuracy) = grad_and_value(meta_loss, has_aux=True)(params, tasks)
        for p, gradient, parameter in zip(params, gradients, problem["parameters"]):
            p.grad = torch.zeros_like(p) if parameter["zero_gradient"] else gradient
        if iteration == 0:
            trace.update({f"gradient/{name}": p.grad.numpy().copy() for name, p in zip(names, params)})
        optimizer.param_groups[0]["lr"] = problem["meta_lr"][iteration]
        optimizer.step()
        figures = (loss.item(), accuracy.item(), time.perf_counter() - began)
        for values, figure in zip(by_iteration.values(), figures):
            values.append(figure)
        if iteration + 1 in problem["weights_after"]:
            for name, p in zip(names, params):
                trace[f"weights_after_{iteration + 1}/{name}"] = p.numpy().copy()
    parts = [
        scores(params, episodes_of(test, first, 20), problem["test_inner_steps"])
        for first in range(0, len(test["query"]), 20)
    ]
    tests = dict(
        zip(("test_loss", "test_accuracy"), (torch.cat(kind).double().numpy() for kind in zip(*parts)))
    )
    return {**trace, **{name: np.array(values) for name, values in by_iteration.items()}, **tests}


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
    "framework": "torch.func, PyTorch", "framework_version": torch.__version__.split("+")[0],
    "reader": Path(__file__).name, "lines": len(Path(__file__).read_text(encoding="utf-8").splitlines()),
    "memory_bytes": int(peak) * 1024,
}  # fmt: skip
np.savez(options.trace, about=np.frombuffer(json.dumps(about).encode(), np.uint8), **arrays)
