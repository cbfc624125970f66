"""The weights that come with paddle_maml in PyTorch, without Paddle. Needs: numpy, torch.

    net, rates = load("5way-1shot.pdparams")  # with its card, 5way-1shot.json, beside it
    logits = predict(net, rates, x_spt, y_spt, x_qry)

Images are float32 (N, 1, 28, 28) in [-1, 1] with ink -1, labels int64 (N,), logits (N, n_way).

python pretrained_pytorch.py WEIGHTS.pdparams EXPORT tests them on the test episodes of an export, see
../interchange.md.
"""

import hashlib
import io
import json
import pickle
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call


class Net(nn.Module):
    """The four blocks, or the perceptron; `weights` by their names in Paddle."""

    def __init__(self, weights, strided=False):
        super().__init__()
        self.strided, self.names = strided, list(weights)
        # Pairs, because of a dict the names would be sorted, and the rates have an order.
        self.params = nn.ParameterDict(
            [(name.replace(".", "/"), nn.Parameter(torch.tensor(array))) for name, array in weights.items()]
        )

    def forward(self, x):
        w = {name: self.params[name.replace(".", "/")] for name in self.names}
        if "linear.weight" in w:
            for block in ("block1.", "block2.", "block3.", "block4."):
                weight, bias, scale, shift = (w[block + kind] for kind in BLOCK)
                x = F.conv2d(x, weight, bias, stride=2 if self.strided else 1, padding=1)
                # Always with the statistics of the images at hand.
                x = F.relu(F.batch_norm(x, None, None, scale, shift, training=True))
                x = x if self.strided else F.max_pool2d(x, 2)
            x = x.mean((2, 3)) if self.strided else x.flatten(1)
            return x @ w["linear.weight"] + w["linear.bias"]
        x, last = x.flatten(1), sum(name.startswith("linear") for name in w) // 2
        for number in range(1, last):
            x = x @ w[f"linear{number}.weight"] + w[f"linear{number}.bias"]
            scale, shift = w[f"norm{number}.weight"], w[f"norm{number}.bias"]
            x = F.relu(F.batch_norm(x, None, None, scale, shift, training=True))
        return x @ w[f"linear{last}.weight"] + w[f"linear{last}.bias"]


BLOCK = ("conv_weight", "conv_bias", "norm_weight", "norm_bias")


class _Arrays(pickle.Unpickler):
    """Makes NumPy arrays, and calls nothing else."""

    def find_class(self, module, name):
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np.zeros(0).__reduce__()[0]
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"{module}.{name} is no array")


def load(path):
    """The network and its inner rates, (steps, tensors), from a .pdparams and the card beside it."""
    data, card = Path(path).read_bytes(), json.loads(Path(path).with_suffix(".json").read_text("utf-8"))
    if hashlib.sha256(data).hexdigest() != card["sha256"]:
        raise SystemExit(f"{path} is not the file that its card describes.")
    arrays = _Arrays(io.BytesIO(data)).load()
    weights = {name: array for name, array in arrays.items() if isinstance(array, np.ndarray)}
    rates, settings = weights.pop("inner_rates", None), card["settings"]
    net = Net(weights, settings.get("architecture") == "stride" and "linear.weight" in weights)
    if rates is None:
        rates = np.full((settings["test_inner_steps"] or settings["inner_steps"], 1), settings["inner_lr"])
    return net, torch.tensor(rates, dtype=torch.float32)


def predict(net, rates, x_spt, y_spt, x_qry):
    """Logits of the query images after the inner steps on the support set; the network stays as it is."""
    theta = {name: p.detach() for name, p in net.named_parameters()}
    # Biases that batch norm takes out again have no gradient and no rate.
    norms = [name for name in theta if "norm" in name and name.endswith("bias")]
    idle = [name.replace("norm", "conv" if "block" in name else "linear") for name in norms]
    moved = [name for name in theta if name not in idle]
    for step in rates:
        at = {name: p.requires_grad_() for name, p in theta.items()}
        loss = F.cross_entropy(functional_call(net, at, (x_spt,)), y_spt)
        gradients = torch.autograd.grad(loss, [at[name] for name in moved])
        theta = {name: p.detach() for name, p in at.items()}
        for name, rate, gradient in zip(moved, step.expand(len(moved)), gradients):
            theta[name] = theta[name] - rate * gradient
    with torch.no_grad():
        return functional_call(net, theta, (x_qry,))


def main(weights, export):
    net, rates = load(weights)
    test, accuracies = dict(np.load(Path(export, "test.npz"))), []
    labels = [torch.tensor(test[f"{name}_labels"]).long() for name in ("support", "query")]
    for support, query in zip(test["support"], test["query"]):
        x_spt, x_qry = (
            torch.tensor(test["images"][rows] / np.float32(255) * 2 - 1) for rows in (support, query)
        )
        logits = predict(net, rates, x_spt.float(), labels[0], x_qry.float())
        accuracies.append((logits.argmax(1) == labels[1]).double().mean().item())
    interval = 1.96 * np.std(accuracies, ddof=1) / len(accuracies) ** 0.5
    print(f"{100 * np.mean(accuracies):.2f} % +- {100 * interval:.2f} on {len(accuracies)} episodes")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
