"""MAML by learn2learn, on an export of ../interchange.md. Needs: numpy, torch, learn2learn.

python learn2learn_maml.py EXPORT TRACE.npz --order 2 --dtype float64
"""

import argparse
import json
import time
from importlib.metadata import version
from pathlib import Path

import learn2learn
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


def adapt(maml, x, y, steps):
    """Yield the learner of one task after 0 .. steps inner steps; it is the same one."""
    learner = maml.clone()
    yield learner
    for _ in range(steps):
        learner.adapt(F.cross_entropy(learner(x), y))
        yield learner


def score(maml, x_spt, y_spt, x_qry, y_qry, steps):
    """Query loss and accuracy of one task after its inner steps."""
    *_, learner = adapt(maml, x_spt, y_spt, steps)
    outputs = learner(x_qry)
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
    net = network([weights[name].astype(options.dtype) for name in names])
    maml = learn2learn.algorithms.MAML(net, problem["inner_lr"], first_order=options.order == 1)
    params = list(net.parameters())
    adam = problem["adam"]
    optimizer = torch.optim.Adam(params, betas=(adam["beta1"], adam["beta2"]), eps=adam["epsilon"])
    size, steps, trace = problem["meta_batch"], problem["inner_steps"], {}
    by_task, by_iteration = (
        {"support_loss": [], "query_loss": []},
        {"loss": [], "accuracy": [], "seconds": []},
    )
    for number in range(size):
        x_spt, y_spt, x_qry, y_qry = episode(episodes, number)
        losses = [
            (F.cross_entropy(learner(x_spt), y_spt).item(), F.cross_entropy(learner(x_qry), y_qry).item())
            for learner in adapt(maml, x_spt, y_spt, steps)
        ]
        for values, of_set in zip(by_task.values(), zip(*losses)):
            values.append(of_set)
    for iteration in range(problem["iterations"]):
        tasks = [episode(episodes, iteration * size + number) for number in range(size)]
        began, losses, accuracies = time.perf_counter(), [], []
        for task in tasks:
            loss, accuracy = score(maml, *task, steps)
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
        loss, accuracy = score(maml, *episode(test, number), problem["test_inner_steps"])
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
    "framework": "learn2learn", "framework_version": version("learn2learn"),
    "reader": Path(__file__).name, "lines": len(Path(__file__).read_text(encoding="utf-8").splitlines()),
    "memory_bytes": int(peak) * 1024,
}  # fmt: skip
np.savez(options.trace, about=np.frombuffer(json.dumps(about).encode(), np.uint8), **arrays)
