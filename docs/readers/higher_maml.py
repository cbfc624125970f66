"""MAML by higher, on an export of ../interchange.md. Needs: numpy, torch, higher.

python higher_maml.py EXPORT TRACE.npz --order 2 --dtype float64
"""

import argparse
import contextlib
import json
import time
from importlib.metadata import version
from pathlib import Path

import higher
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class Linear(nn.Module):
    """PyTorch's own has its weight the other way round."""

    def __init__(self, weight, bias):
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, x):
        return x @ self.weight + self.bias


def network(arrays):
    parameters, layers = [nn.Parameter(torch.tensor(array)) for array in arrays], []
    strided = problem["architecture"] == "stride"
    for block in range(4):
        weight, bias, scale, shift = parameters[4 * block : 4 * block + 4]
        convolution = nn.Conv2d(weight.shape[1], weight.shape[0], 3, 2 if strided else 1, padding=1)
        convolution.weight, convolution.bias = weight, bias
        norm = nn.BatchNorm2d(len(scale), problem["batch_norm_epsilon"], track_running_stats=False)
        norm.weight, norm.bias = scale, shift
        layers += [convolution, norm, nn.ReLU()] + [nn.MaxPool2d(2)] * (not strided)
    end = [nn.AdaptiveAvgPool2d(1)] * strided
    return nn.Sequential(*layers, *end, nn.Flatten(), Linear(*parameters[-2:]))


@contextlib.contextmanager
def task_copy(net):
    """higher's copy of the network for one task, with its inner optimizer."""
    sgd = torch.optim.SGD(net.parameters(), problem["inner_lr"])
    with higher.innerloop_ctx(
        net, sgd, copy_initial_weights=False, track_higher_grads=options.order == 2
    ) as copy:
        yield copy


def losses_by_step(net, x_spt, y_spt, x_qry, y_qry, steps):
    """Pairs of support and query loss of one task after 0 .. steps inner steps."""
    losses = []
    with task_copy(net) as (learner, optimizer):
        for step in range(steps + 1):
            loss = F.cross_entropy(learner(x_spt), y_spt)
            losses.append((loss.item(), F.cross_entropy(learner(x_qry), y_qry).item()))
            if step < steps:
                optimizer.step(loss)
    return losses


def score(net, x_spt, y_spt, x_qry, y_qry, steps):
    """Query loss of one task after its inner steps, its gradient, and the accuracy."""
    with task_copy(net) as (learner, optimizer):
        for _ in range(steps):
            optimizer.step(F.cross_entropy(learner(x_spt), y_spt))
        outputs = learner(x_qry)
        loss = F.cross_entropy(outputs, y_qry)
        # In first order higher keeps no parameters but the last: the gradient is the one by them.
        gradients = torch.autograd.grad(loss, list(learner.parameters(time=0)))
    return loss.item(), gradients, (outputs.argmax(1) == y_qry).double().mean().item()


def episode(part, number):
    task = []
    for name in ("support", "query"):
        images = part["images"][part[name][number]].astype(np.float32)
        x = images / np.float32(255) * np.float32(2) - np.float32(1)
        task += [torch.tensor(x.astype(options.dtype)), torch.tensor(part[f"{name}_labels"]).long()]
    return task


def train(weights, episodes, test):
    names = [parameter["name"] for parameter in problem["parameters"]]
    net = network([weights[name].astype(options.dtype) for name in names])
    params = list(net.parameters())
    adam = problem["adam"]
    optimizer = torch.optim.Adam(params, betas=(adam["beta1"], adam["beta2"]), eps=adam["epsilon"])
    size, steps, trace = problem["meta_batch"], problem["inner_steps"], {}
    by_task, by_iteration = (
        {"support_loss": [], "query_loss": []},
        {"loss": [], "accuracy": [], "seconds": []},
    )
    for number in range(size):
        losses = losses_by_step(net, *episode(episodes, number), steps)
        for values, of_set in zip(by_task.values(), zip(*losses)):
            values.append(of_set)
    for iteration in range(problem["iterations"]):
        tasks = [episode(episodes, iteration * size + number) for number in range(size)]
        began, losses, accuracies = time.perf_counter(), [], []
        for task in tasks:
            loss, gradients, accuracy = score(net, *task, steps)
            losses.append(loss)
            accuracies.append(accuracy)
            for p, gradient in zip(params, gradients):
                p.grad = gradient / size if p.grad is None else p.grad + gradient / size
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
        loss, _, accuracy = score(net, *episode(test, number), problem["test_inner_steps"])
        tests["test_loss"].append(loss)
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
    "framework": "higher", "framework_version": version("higher"),
    "reader": Path(__file__).name, "lines": len(Path(__file__).read_text(encoding="utf-8").splitlines()),
    "memory_bytes": int(peak) * 1024,
}  # fmt: skip
np.savez(options.trace, about=np.frombuffer(json.dumps(about).encode(), np.uint8), **arrays)
