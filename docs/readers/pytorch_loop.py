"""MAML in PyTorch, task by task with a plain loop, on an export of ../interchange.md. Needs: numpy, torch.

python pytorch_loop.py EXPORT TRACE.npz --order 2 --dtype float64
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F


def logits(x, params):
    strided = problem["architecture"] == "stride"
    for block in range(4):
        weight, bias, scale, shift = params[4 * block : 4 * block + 4]
        x = F.conv2d(x, weight, bias, stride=2 if strided else 1, padding=1)
        x = F.batch_norm(x, None, None, scale, shift, training=True, eps=problem["batch_norm_epsilon"])
        x = F.relu(x) if strided else F.max_pool2d(F.relu(x), 2)
    x = x.mean((2, 3)) if strided else x.flatten(1)
    return x @ params[-2] + params[-1]


def loss_of(params, x, y):
    return F.cross_entropy(logits(x, params), y)


def adapt(params, x, y, steps):
    """theta_0 .. theta_steps of one task."""
    thetas = [params]
    for _ in range(steps):
        gradients = torch.autograd.grad(
            loss_of(thetas[-1], x, y), thetas[-1], create_graph=options.order == 2
        )
        thetas.append([p - problem["inner_lr"] * g for p, g in zip(thetas[-1], gradients)])
    return thetas


def score(params, x_spt, y_spt, x_qry, y_qry, steps):
    """Query loss and accuracy of one task after its inner steps."""
    outputs = logits(x_qry, adapt(params, x_spt, y_spt, steps)[-1])
    return F.cross_entropy(outputs, y_qry), (outputs.argmax(1) == y_qry).double().mean().item()


def episode(part, number):
    task = []
    for name in ("support", "query"):
        images = part["images"][part[name][number]].astype(np.float32)
        x = images / np.float32(255) * np.float32(2) - np.float32(1)
        task += [torch.tensor(x.astype(options.dtype)), torch.tensor(part[f"{name}_labels"]).long()]
    return task


def train(weights, episodes, test):
    names = [parameter["name"] for parameter in problem["parameters"]]
    params = [torch.tensor(weights[name].astype(options.dtype), requires_grad=True) for name in names]
    adam = problem["adam"]
    optimizer = torch.optim.Adam(params, betas=(adam["beta1"], adam["beta2"]), eps=adam["epsilon"])
    size, steps, trace = problem["meta_batch"], problem["inner_steps"], {}
    by_task, by_iteration = (
        {"support_loss": [], "query_loss": []},
        {"loss": [], "accuracy": [], "seconds": []},
    )
    for number in range(size):
        x_spt, y_spt, x_qry, y_qry = episode(episodes, number)
        thetas = adapt(params, x_spt, y_spt, steps)
        by_task["support_loss"].append([loss_of(theta, x_spt, y_spt).item() for theta in thetas])
        by_task["query_loss"].append([loss_of(theta, x_qry, y_qry).item() for theta in thetas])
    for iteration in range(problem["iterations"]):
        tasks = [episode(episodes, iteration * size + number) for number in range(size)]
        began, losses, accuracies = time.perf_counter(), [], []
        for task in tasks:
            loss, accuracy = score(params, *task, steps)
            (loss / size).backward()
            losses.append(loss.item())
            accuracies.append(accuracy)
        for p, parameter in zip(params, problem["parameters"]):
            if parameter["zero_gradient"]:
                p.grad.zero_()
        if iteration == 0:
            trace.update({f"gradient/{name}": p.grad.numpy().copy() for name, p in zip(names, params)})
        optimizer.param_groups[0]["lr"] = problem["meta_lr"][iteration]
        optimizer.step()
        optimizer.zero_grad()
        figures = (np.mean(losses), np.mean(accuracies), time.perf_counter() - began)
        for values, figure in zip(by_iteration.values(), figures):
            values.append(figure)
        if iteration + 1 in problem["weights_after"]:
            for name, p in zip(names, params):
                trace[f"weights_after_{iteration + 1}/{name}"] = p.detach().numpy().copy()
    tests = {"test_loss": [], "test_accuracy": []}
    for number in range(len(test["query"])):
        loss, accuracy = score(params, *episode(test, number), problem["test_inner_steps"])
        tests["test_loss"].append(loss.item())
        tests["test_accuracy"].append(accuracy)
    lists = {**by_task, **by_iteration, **tests}
    return {**trace, **{name: np.array(values, np.float64) for name, values in lists.items()}}


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
    "framework": "loop, PyTorch", "framework_version": torch.__version__.split("+")[0],
    "reader": Path(__file__).name, "lines": len(Path(__file__).read_text(encoding="utf-8").splitlines()),
    "memory_bytes": int(peak) * 1024,
}  # fmt: skip
np.savez(options.trace, about=np.frombuffer(json.dumps(about).encode(), np.uint8), **arrays)
