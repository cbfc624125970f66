"""Whether the Paddle that is installed can be used. The package does not bring one along: which build is
right depends on the machine, and two builds that own the same module would overwrite each other."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
from importlib import metadata

from .errors import UserError


@functools.lru_cache(maxsize=None)
def require_paddle() -> None:
    """UserError unless there is a Paddle, and a NumPy that it works with; neither is imported."""
    if importlib.util.find_spec("paddle") is None:
        raise UserError(
            "PaddlePaddle is missing: pip install paddlepaddle for a CPU, or take the build for your GPU "
            "from https://www.paddlepaddle.org.cn/install/quick."
        )
    paddle, numpy = _version("paddlepaddle-gpu", "paddlepaddle"), _version("numpy")
    if paddle.startswith("2.") and int(numpy.partition(".")[0] or 0) >= 2:
        raise UserError(
            f"PaddlePaddle {paddle} dies of a segmentation fault with NumPy {numpy}: pip install 'numpy<2'."
        )


def _version(*names):
    """The version of the first of some distributions that is installed, else an empty text."""
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(name)
    return ""
