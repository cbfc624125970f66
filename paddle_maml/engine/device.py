"""The machine: what must be set before Paddle is imported, and which device computes."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import signal
import sys
import warnings
from types import ModuleType
from typing import Callable

from ..errors import UserError
from ..installed import require_paddle
from .signals import signals_go_to, signals_wait

# Numbers of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_GIB = 1 << 30

_CPUINFO = "/proc/cpuinfo"  # Linux alone has it


def prepare() -> None:
    """Set up the process; call it before Paddle is imported.

    Silences what Paddle prints about GPU libraries that a CPU machine does not have, has a GPU multiply with
    all bits of float32, has MKL use all of an AMD processor, and tells the memory allocator to keep what it
    got. Settings the user made in the environment stay.
    """
    os.environ.setdefault("GLOG_minloglevel", "2")
    os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
    use_all_of_amd()
    warnings.filterwarnings("ignore", message=".*your CUDA device is not set properly.*")
    warnings.filterwarnings("ignore", message=".*No ccache found.*")
    _keep_freed_memory()


def _keep_freed_memory():
    # Paddle's CPU tensors are freed after each operator. glibc gives such large blocks back to the system and
    # gets zeroed pages for the next operator: about a fifth of a meta-iteration's time.
    if not sys.platform.startswith("linux") or any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl and others
        return
    # Older glibc refuses more than 32 MiB.
    if not mallopt(_M_MMAP_THRESHOLD, _GIB):
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)
    mallopt(_M_TRIM_THRESHOLD, 2 * _GIB - 1)


def use_all_of_amd() -> None:
    """Have MKL, once it is loaded, use the vector instructions of an AMD processor; a part of `prepare`."""
    cpuinfo = _cpuinfo()
    if cpuinfo.get("vendor_id") == "AuthenticAMD" and "avx2" in cpuinfo.get("flags", "").split():
        # The MKL in Paddle's wheels takes its slow path on processors that are not Intel's, which can double
        # a meta-iteration's time (docs/speed.md). 5 is what it calls AVX2; releases of MKL after 2019 do not
        # know the variable.
        os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")


def import_paddle() -> ModuleType:
    """Import Paddle with its signal handlers, which print a stack, taken away; returns the module.

    Interrupted, the import would leave Paddle broken: a signal waits until it is done, some seconds.

    Raises:
        UserError: as `require_paddle`; or it would fail of what is in the place of its launcher's numbers in
            the environment.
    """
    for name in ("PADDLE_TRAINER_ID", "PADDLE_TRAINERS_NUM"):
        if not os.environ.get(name, "0").isdecimal():
            raise UserError(
                f"{name} is {os.environ[name]!r}, but must be a whole number: unset it, or let "
                "paddle.distributed.launch set it."
            )
    require_paddle()
    # Paddle takes Python's handlers away too; leaving `signals_go_to` sets them again.
    with signals_wait(), signals_go_to(signal.SIG_DFL):
        try:
            import paddle  # here, because `prepare` comes before
        except ModuleNotFoundError as error:
            raise UserError(f"The package {error.name} is missing: pip install {error.name}.") from error

        paddle.disable_signal_handler()
    return paddle


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """The processor's name, as far as the system tells."""
    return _cpuinfo().get("model name") or platform.processor()


def _cpuinfo():
    """What Linux says of the first core, a dict of texts; elsewhere nothing."""
    try:
        with open(_CPUINFO, encoding="utf-8", errors="replace") as file:
            first, _, _ = file.read().partition("\n\n")
    except OSError:
        return {}
    return {
        name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())
    }


def gpu_count() -> int:
    """The GPUs that Paddle sees."""
    paddle = import_paddle()
    return paddle.device.cuda.device_count() if paddle.device.is_compiled_with_cuda() else 0


def select_device(name: str = "auto", announce: Callable[[str], None] = print) -> str:
    """Choose the device for all that follows.

    Args:
        name: "auto" (a GPU that runs a kernel, else the CPU), "cpu", or "gpu:0", "gpu:1" and so on. The GPU
            of "auto" is the first, or the one that Paddle's launcher gave to this process.
        announce: function that takes one line saying why there is no GPU.
    Returns:
        The device's name as Paddle gives it: "cpu" or "gpu:N".
    Raises:
        UserError: a GPU was asked for by name and does not work, or the name is none.
    """
    paddle = import_paddle()
    if name == "cpu":
        return _use(paddle, "cpu")
    if name != "auto" and not re.fullmatch(r"gpu(:\d+)?", name):
        raise UserError(f"device is {name!r}, but must be auto, cpu, or gpu:0 and so on.")
    given = os.environ.get("FLAGS_selected_gpus", "0")  # noqa: SIM112 - Paddle's name
    wanted = "gpu:" + given.split(",")[0] if name == "auto" else name
    problem = _gpu_problem(paddle, wanted)
    if problem is None:
        return _use(paddle, wanted)
    if name != "auto":
        raise UserError(f"device {name} cannot be used: {problem}; choose another one, or cpu.")
    announce(f"Computing on the CPU: {problem}.")
    return _use(paddle, "cpu")


def _use(paddle, name):
    paddle.set_device(name)
    return paddle.device.get_device()


def _gpu_problem(paddle, name):
    """Why a GPU cannot be used, or None. A driver that lists a card may still fail to run a kernel, so
    kernels are run."""
    if not paddle.device.is_compiled_with_cuda():
        return "this Paddle was built without GPU support"
    count, index = paddle.device.cuda.device_count(), int((name + ":0").split(":")[1])
    if count == 0:
        return "no GPU was found"
    if index >= count:
        return f"there are only {count} GPUs, counted from 0"
    try:
        paddle.set_device(name)
        x = paddle.ones([1, 1, 8, 8])
        # A convolution, because it needs cuDNN as well as CUDA.
        total = float(paddle.nn.functional.conv2d(x, paddle.ones([1, 1, 3, 3])).sum())
    except Exception as error:
        # Paddle raises many types here, with a native stack; its last lines say what happened.
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return f"a kernel on {name} failed ({lines[-1][:200] if lines else type(error).__name__})"
    return None if total == 324.0 else f"a kernel on {name} computed {total} instead of 324"
