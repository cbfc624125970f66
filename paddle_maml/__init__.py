"""Model-agnostic meta-learning (Finn et al. 2017) for PaddlePaddle, first order and exactly second order.

The public names are loaded when they are first used, so that a program can say how Paddle is to start
(device.prepare) before Paddle is imported.
"""

from __future__ import annotations

import importlib

# Before Paddle: the library of Paddle 2.6 exports zlib's functions, and a zlib that is loaded after it calls
# those, and crashes.
import zlib  # noqa: F401
from typing import Any

from .installed import require_paddle

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
