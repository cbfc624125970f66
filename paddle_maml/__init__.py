"""Model-agnostic meta-learning (Finn et al. 2017) for PaddlePaddle, first order and exactly second order.

The public names are loaded when they are first used, so that a program can say how Paddle is to start
(device.prepare) before Paddle is imported.
"""

from __future__ import annotations

import ctypes
import importlib
import sys

# Before Paddle: the library of Paddle 2.6 exports zlib's functions, and libz, where it is loaded with that
# library or after it, calls those in the place of its own, and crashes.
import zlib  # noqa: F401
from typing import Any

from .installed import require_paddle

_loaded = list(sys.modules)
if (
    sys.platform.startswith("linux")
    and "paddle.base.libpaddle" in _loaded[: _loaded.index("zlib")]
    and sys.modules["paddle"].version.major == "2"
    and not hasattr(ctypes.CDLL(None), "deflateReset")  # a libz that is preloaded comes first all the same
):
    raise ImportError(
        "Import paddle_maml, or zlib, before paddle: in this order PNG files and zips crash Paddle 2.6."
    )

__version__ = "0.1.0"

_HOMES = {
    "MAML": "networks.conv4",
    "MetaLearner": "learners.maml",
    "ReptileLearner": "learners.reptile",
    "MLP": "networks.mlp",
    "twice_differentiable": "networks.twice_differentiable",
    "EpisodeBuilder": "data.episodes",
    "meta_batch": "data.episodes",
    "ImageSet": "data.images",
    "SinusoidBuilder": "data.sinusoid",
    "draw_synthetic": "data.synthetic",
    "UserError": "errors",
    "load": "inference.classifier",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name != "UserError":
        require_paddle()
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
