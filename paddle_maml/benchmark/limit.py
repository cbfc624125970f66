"""How far a meta-iteration is from what the machine's cores can multiply."""

from __future__ import annotations

import os
import subprocess
import sys

from ..engine.settings import Settings

BLOCKS, TAPS = 4, 9
# Multiplications of Winograd's F(2x2, 3x3) to those of the definition.
WINOGRAD = 16 / 36
# What a gradient and a Hessian-vector product (kernels/README.md, equations 3 and 6) take of a block, in
# convolutions of the forward pass. The first block's input is constant: no gradient by it, and none along it.
GRADIENT, HESSIAN = 3, 6
FIRST_GRADIENT, FIRST_HESSIAN = 2, 2

_PRODUCT = """
import statistics, time
from paddle_maml.engine.device import prepare
prepare()
import paddle
paddle.set_device("cpu")
a, b = paddle.rand([{n}, {n}]), paddle.rand([{n}, {n}])
seconds = []
for turn in range(8):
    began = time.perf_counter()
    float(paddle.matmul(a, b)[0, 0])
    seconds.append(time.perf_counter() - began)
print(2 * {n} ** 3 / statistics.median(seconds[1:]) / 1e9)
"""


def work(settings: Settings, order: int) -> tuple[float, float]:
    """GFLOP of the convolutions of a meta-iteration of the four blocks with max-pools, for grey images.

    An inner step is a gradient on the support set, in second order also a Hessian-vector product, and at the
    end there is a gradient on the query set.

    Returns:
        (by their definition, by Winograd's F(2x2, 3x3) in all blocks but the first).
    """
    first, others, size, channels = 0.0, 0.0, settings.image_size, 1
    for block in range(BLOCKS):
        flop = 2.0 * size * size * TAPS * channels * settings.width
        first, others = (first + flop, others) if block == 0 else (first, others + flop)
        size, channels = size // 2, settings.width
    support = settings.n_way * settings.k_shot * settings.inner_steps
    query = settings.n_way * settings.k_query
    products = support if order == 2 else 0
    first *= (support + query) * FIRST_GRADIENT + products * FIRST_HESSIAN
    others *= (support + query) * GRADIENT + products * HESSIAN
    scale = settings.meta_batch / 1e9
    return scale * (first + others), scale * (first + WINOGRAD * others)


def product_rate(size: int = 1536) -> float:
    """GFLOP/s of one core in a product of two float32 matrices of that size, in a process of its own."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    out = subprocess.run(
        [sys.executable, "-c", _PRODUCT.format(n=size)],
        env={**os.environ, **threads},
        capture_output=True,
        text=True,
        check=True,
    )
    return float(out.stdout.split()[-1])


def share_of_the_limit(settings: Settings, order: int, seconds: float, rate: float, cores: int) -> dict:
    """What a meta-iteration of so many seconds is to the cores' limit: plain values."""
    defined, fewest = work(settings, order)
    return {
        "order": order,
        "gflop": defined,
        "gflop_winograd": fewest,
        "core_gflop_per_s": rate,
        "cores": cores,
        "ratio": fewest / seconds / (rate * cores),
    }
