"""Five meta-iterations of each order from a fixed seed, as they were before the library was rebuilt around
any network.

`python tests/five_meta_iterations.py` prints them; with --keep it adds this machine's digests to the golden
file. The losses in it stay; the digests were taken anew when the convolution before a max-pool became one
product instead of Winograd's.
"""

import hashlib
import json
import os
import sys

# Bits depend on the number of threads, and on what MKL takes the processor for.
os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", PADDLE_MAML_NATIVE="0")

from paddle_maml import MAML, MetaLearner
from paddle_maml.engine.device import prepare

prepare()

import numpy as np  # noqa: E402
import paddle  # noqa: E402

GOLDEN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "golden", "five_meta_iterations.json")

# name: (network, learner, dtype, step weights)
CASES = {
    "order 1": ({}, {"order": 1, "inner_steps": 5}, "float32", None),
    "order 2": ({}, {"order": 2, "inner_steps": 5}, "float32", None),
    "order 2, float64": ({}, {"order": 2, "inner_steps": 3}, "float64", None),
    "order 2, strided": (
        {"architecture": "stride"},
        {"order": 2, "inner_steps": 1, "inner_lr": 0.5},
        "float32",
        None,
    ),
    "order 2, learned rates, every step's loss": (
        {},
        {"order": 2, "inner_steps": 2, "learn_inner_lr": True},
        "float32",
        [0.1, 0.3, 0.6],
    ),
    "order 1, learned rates, the last layer": (
        {},
        {"order": 1, "inner_steps": 2, "learn_inner_lr": True, "adapted": "head"},
        "float32",
        None,
    ),
}


def episodes(iteration, dtype):
    """Three 5-way 1-shot tasks of noise: x (T, N, 1, 28, 28), y (T, N), support then query."""
    random = np.random.RandomState(100 + iteration)
    arrays = []
    for shots in (1, 4):
        arrays.append(random.standard_normal((3, 5 * shots, 1, 28, 28)).astype(dtype))
        arrays.append(np.tile(np.repeat(np.arange(5), shots), (3, 1)))
    return arrays


def run(name):
    """The five losses, floats, and the SHA-256 of all weights after them."""
    network, learner, dtype, step_weights = CASES[name]
    paddle.set_device("cpu")
    before = paddle.get_default_dtype()
    paddle.set_default_dtype(dtype)
    try:
        paddle.seed(3)
        learner = MetaLearner(MAML(n_way=5, width=16, **network), **{"inner_lr": 0.1, **learner}, chunk=2)
        optimizer = paddle.optimizer.Adam(0.001, parameters=learner.parameters())
        losses = []
        for iteration in range(5):
            loss, _ = learner.meta_loss(*episodes(iteration, dtype), step_weights=step_weights)
            loss.backward()
            optimizer.step()
            optimizer.clear_grad()
            losses.append(float(loss))
        digest = hashlib.sha256()
        for parameter in learner.parameters():
            digest.update(np.ascontiguousarray(parameter.numpy()).tobytes())
        return losses, digest.hexdigest()
    finally:
        paddle.set_default_dtype(before)


def machine():
    """What bits may depend on."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        lines = dict(line.split(":", 1) for line in file.read().split("\n\n")[0].splitlines() if ":" in line)
    fields = {key.strip(): value.strip() for key, value in lines.items()}
    parts = [fields.get(key, "?") for key in ("model name", "cpu family", "model")]
    return ", ".join(parts) + f", Paddle {paddle.__version__}"


def main():
    results = {name: run(name) for name in CASES}
    if sys.argv[1:] != ["--keep"]:
        print(json.dumps({"machine": machine(), "results": results}))
        return
    golden = {}
    if os.path.exists(GOLDEN):
        with open(GOLDEN, encoding="utf-8") as file:
            golden = json.load(file)
    for name, (losses, digest) in results.items():
        golden.setdefault(name, {"losses": losses, "digests": {}})["digests"].setdefault(machine(), digest)
    with open(GOLDEN, "w", encoding="utf-8") as file:
        json.dump(golden, file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main()
