"""The network's blocks by a kernel in C (native.c), several times as fast on a CPU as Paddle's operators.

The kernel is compiled by the system's C compiler when it is first wanted, and kept in a folder of the user's.
`problem()` loads it, or says in a sentence why it cannot be used; then other operators have to serve.

Each operator is a PyLayer whose backward is another one, so that it can be differentiated twice, as MAML's
exact meta-gradient wants it; a third time is not offered. A block is two of them, because the convolution is
linear in each of its arguments: its second derivatives are convolutions again, and what batch norm's second
derivative adds to the gradient by the map is added before the convolution goes back.

Shapes: T tasks side by side, each with parameters of its own and N images; maps (T, N, H, W, channels);
weights (T, 9 * C, D), the taps in reading order, the channels of a tap together; what is one number a channel
(T, 1, D). D is a multiple of 16, and C too but for images. Everything is float32 and on the CPU.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import paddle
from paddle.autograd import PyLayer

from ..files import read_whole, sealed, unsealed

SWITCH = "PADDLE_MAML_NATIVE"  # 0 in the environment: the kernel is not used
WIDTHS = 16  # it computes with multiples of this many channels
TAPS = 9

_SOURCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "native.c")
_FLAGS = ["-O3", "-std=gnu11", "-shared", "-fPIC", "-pthread", "-Wno-psabi"]
# The vector instructions of this processor; GCC on AArch64 and older Clangs know one or the other name.
_PROCESSOR_FLAGS = [["-march=native"], ["-mcpu=native"]]
_COMPILE_SECONDS = 300
_MOST_BYTES = 1 << 26  # of the compiled kernel
_ARGUMENTS = {
    "convolve": 7,
    "convolve_gradient": 5,
    "normalize": 6,
    "normalize_gradient": 9,
    "normalize_second": 12,
    "first_prepare": 4,
    "first_forward": 8,
    "first_gradient": 10,
    "first_second": 13,
}


# -------------------------------------------------------------------------------------- compiling and loading


class _Unusable(Exception):
    """Why the kernel cannot be used, in a few words."""


def problem(announce: Callable[[str], None] | None = None) -> str | None:
    """Load the kernel, and compile it if that was not done before.

    Args:
        announce: function that takes one line, said before the kernel is compiled, which takes some seconds.

    Returns:
        None, or why the kernel cannot be used, a few words for one line of output. What was found stays for
        the process: to ask again takes some two microseconds.
    """
    device = paddle.get_device()
    if device != "cpu":
        return f"the native kernel is for the CPU, not for {device}"
    if os.environ.get(SWITCH) == "0":
        return f"{SWITCH} is 0"
    return (_result or _loaded(announce))[1]


def usable(width: int, in_channels: int, dtype: object = "float32") -> bool:
    """Whether the kernel, where it can be used at all, computes networks of these channels and dtype."""
    return width % WIDTHS == 0 and width > 0 and in_channels > 0 and str(dtype).endswith("float32")


def cores() -> int:
    """Threads that the kernel uses by default: PADDLE_MAML_THREADS where it is a number, else the cores this
    process may use, divided by the processes that Paddle's launcher started here. OMP_NUM_THREADS does not
    count: Paddle itself sets it to 1."""
    threads, sharing = (os.environ.get(name, "") for name in ("PADDLE_MAML_THREADS", "PADDLE_LOCAL_SIZE"))
    if threads.isdecimal():
        return max(1, int(threads))
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, mine // int(sharing)) if sharing.isdecimal() and int(sharing) else mine


_lock = threading.Lock()
_result = None


def _loaded(announce=None):
    """The library or None, and None or why not."""
    global _result
    with _lock:
        if _result is None:
            try:
                _result = _load(announce or (lambda line: None)), None
            except _Unusable as error:
                _result = None, str(error)
            except OSError as error:
                _result = None, f"the native kernel could not be made ({error})"
    return _result


def _load(announce):
    compiler = shutil.which("cc")
    if compiler is None:
        raise _Unusable("the native kernel needs a C compiler, and there is no cc")
    with open(_SOURCE, "rb") as file:
        source = file.read()
    identity = [
        source,
        _output([compiler, "--version"]),
        repr((_FLAGS, _PROCESSOR_FLAGS)).encode(),
        _processor().encode(),
    ]
    name = hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in identity)).hexdigest()
    path = os.path.join(_folder(), name + ".so")
    if not _sound(path):
        announce("Compiling the native kernel, once; it takes some seconds.")
        _compile(compiler, source, path)
    if not _own(os.lstat(path)):
        raise _Unusable(f"{path} can be written by others")
    library = ctypes.CDLL(path)
    for function, count in _ARGUMENTS.items():
        getattr(library, function).argtypes = [ctypes.c_void_p] * (count + 1)
        getattr(library, function).restype = ctypes.c_int
    _check(library)
    return library


def _folder():
    """Where compiled kernels are kept: only what this user alone can write there is ever loaded."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    folder = os.path.join(
        cache if os.path.isabs(cache) else os.path.join(os.path.expanduser("~"), ".cache"),
        "paddle_maml",
        "native",
    )
    os.makedirs(folder, mode=0o700, exist_ok=True)
    status = os.lstat(folder)
    if not stat.S_ISDIR(status.st_mode) or not _own(status):
        raise _Unusable(f"{folder}, where the native kernel would be kept, can be written by others")
    return folder


def _own(status):
    return (not hasattr(os, "geteuid") or status.st_uid == os.geteuid()) and not status.st_mode & (
        stat.S_IWGRP | stat.S_IWOTH
    )


def _sound(path):
    """Whether the library is what was written: one that was cut short would end the process when it is
    called (SIGBUS)."""
    try:
        return unsealed(read_whole(path, _MOST_BYTES)) is not None
    except (OSError, ValueError):
        return False


def _output(command):
    try:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_COMPILE_SECONDS, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _Unusable(f"the C compiler does not work ({error})") from error


def _processor():
    """What decides which instructions "native" means."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            first, _, _ = file.read().partition("\n\n")
    except OSError:
        first = ""
    kept = [
        line
        for line in first.splitlines()
        if line.partition(":")[0].strip()
        in (
            "vendor_id",
            "cpu family",
            "model",
            "model name",
            "stepping",
            "flags",
            "Features",
            "CPU part",
            "CPU implementer",
        )
    ]
    return "\n".join([platform.system(), platform.machine(), platform.processor(), *kept])


def _compile(compiler, source, path):
    """Write the library whole or not at all: several processes may do this at once."""
    failures = []
    with tempfile.TemporaryDirectory(prefix="compiling-", dir=os.path.dirname(path)) as folder:
        text, result = os.path.join(folder, "native.c"), os.path.join(folder, "native.so")
        with open(text, "wb") as file:  # the text that the name of the result stands for
            file.write(source)
        for processor_flags in _PROCESSOR_FLAGS:
            command = [compiler, *_FLAGS, *processor_flags, "-o", result, text, "-lm"]
            try:
                done = subprocess.run(
                    command,
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    timeout=_COMPILE_SECONDS,
                    check=False,
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                raise _Unusable(f"the C compiler does not work ({error})") from error
            if done.returncode == 0 and os.path.exists(result):
                break
            failures += done.stderr.decode(errors="replace").strip().splitlines()[:1]
        else:
            raise _Unusable(
                f"the C compiler failed ({failures[0][:200] if failures else 'it did not say why'})"
            )
        with open(result, "rb") as file:
            library = sealed(file.read())
        with open(result, "wb") as file:
            file.write(library)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(result, 0o700)
        os.replace(result, path)


def _check(library):
    """Refuse a kernel that computes something else than a convolution by its definition."""
    random, tasks, images, channels, depth = np.random.RandomState(0), 2, 3, 16, 16
    for size, stride in ((8, 1), (3, 1), (5, 2)):
        x, w = (
            random.standard_normal([tasks, images, size, size, channels]),
            random.standard_normal([tasks, TAPS, channels, depth]),
        )
        out = (size - 1) // stride + 1
        padded = np.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1), (0, 0)])
        expected = sum(
            np.einsum(
                "tnijc,tcd->tnijd",
                padded[:, :, tap // 3 :, tap % 3 :][:, :, :size:stride, :size:stride],
                w[:, tap],
            )
            for tap in range(TAPS)
        )
        arrays = [np.ascontiguousarray(a, np.float32) for a in (x, w)]
        y, mean, variance = [
            np.zeros(shape, np.float32) for shape in (expected.shape, (tasks, depth), (tasks, depth))
        ]
        shape = _Shape(tasks, images, size, size, channels, depth, stride, 2)
        failed = library.convolve(
            ctypes.addressof(shape),
            *[a.ctypes.data for a in arrays],
            None,
            None,
            *[a.ctypes.data for a in (y, mean, variance)],
        )
        right = (
            np.allclose(y, expected, atol=1e-3)
            and np.allclose(mean, expected.mean(axis=(1, 2, 3)), atol=1e-3)
            and np.allclose(variance, expected.var(axis=(1, 2, 3)), rtol=1e-3)
            and y.shape[2] == out
        )
        if failed or not right:
            raise _Unusable("the native kernel computed something wrong on this machine")


# ---------------------------------------------------------------------------------------------------- calling


# Whatever Paddle's default dtype is.
_empty = functools.partial(paddle.empty, dtype="float32")


class _Shape(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int64)
        for name in ("tasks", "images", "height", "width", "channels", "depth", "stride", "threads")
    ]

    @property
    def conv_size(self) -> tuple[int, int]:
        """Height and width after the convolution."""
        return (self.height - 1) // self.stride + 1, (self.width - 1) // self.stride + 1

    def maps(self) -> list[int]:
        """The shape of the convolution's output."""
        return [self.tasks, self.images, *self.conv_size, self.depth]

    def pooled(self) -> list[int]:
        """The shape of the block's output."""
        side = 2 if self.stride == 1 else 1
        return [self.tasks, self.images, *(size // side for size in self.conv_size), self.depth]


@functools.lru_cache(maxsize=256)
def _shape(*numbers):
    return _Shape(*numbers)


def _call(function, shape, *tensors):
    """Call a function of the library, which writes to the last of the tensors; None is a NULL."""
    library, reason = _result or _loaded()
    if library is None:
        raise RuntimeError(reason)
    given = [None if tensor is None else _given(tensor) for tensor in tensors]
    if getattr(library, function)(
        ctypes.addressof(shape), *[None if tensor is None else tensor.data_ptr() for tensor in given]
    ):
        raise MemoryError(f"not enough memory for {function} of the native kernel")


def _given(tensor):
    """A tensor as the library takes it: without gaps."""
    if tensor.dtype not in (paddle.float32, paddle.uint8) or not tensor.place.is_cpu_place():
        raise TypeError(f"the native kernel takes float32 on the CPU, not {tensor.dtype} on {tensor.place}")
    return tensor if tensor.is_contiguous() else tensor.contiguous()


class _Constants:
    """Tensors that a PyLayer does not see in its arguments: it would take them for inputs."""

    def __init__(self, *tensors: paddle.Tensor) -> None:
        self._tensors = tensors

    def __iter__(self) -> Iterator[paddle.Tensor]:
        return iter(self._tensors)


def _save(ctx, *inputs):
    """Keep the tensors that backward needs, and which of them are constants."""
    ctx.save_for_backward(*inputs)
    ctx.constants = [tensor.stop_gradient for tensor in inputs]


def _wanted(constants, *gradients):
    """Paddle wants None as the gradient of a constant."""
    return tuple(None if constant else gradient for constant, gradient in zip(constants, gradients))


# ------------------------------------------------------------------------------------------------ convolution


class Statistics(NamedTuple):
    """What batch norm subtracts, and what it divides by the root of: constants (T, D)."""

    mean: paddle.Tensor
    variance: paddle.Tensor


class _Moments:
    """The statistics of a convolution's output: a function of it, which the operator that normalises it
    differentiates."""

    value = None


class _Convolve(PyLayer):
    @staticmethod
    def forward(ctx, x, weight, shape, moments):
        _save(ctx, x, weight)
        ctx.shape = shape
        y, mean, variance = _empty(shape.maps()), None, None
        if moments is not None:
            moments.value = Statistics(_empty([shape.tasks, shape.depth]), _empty([shape.tasks, shape.depth]))
            mean, variance = moments.value
        _call("convolve", shape, x, weight, None, None, y, mean, variance)
        return y

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensor()
        gradients = iter(_as_tuple(_ConvolveGradient.apply(x, weight, grad, ctx.shape, ctx.constants)))
        return tuple(None if constant else next(gradients) for constant in ctx.constants)


class _ConvolveGradient(PyLayer):
    """By the arguments that are not constant: Paddle 2.6 dies in the second derivative of an operator of
    which one output is not used."""

    @staticmethod
    def forward(ctx, x, weight, grad, shape, constants):
        _save(ctx, x, weight, grad)
        ctx.shape, ctx.wanted = shape, constants
        return _gradients_of_convolution(x, weight, grad, shape, constants)

    @staticmethod
    def backward(ctx, *along):
        x, weight, grad = ctx.saved_tensor()
        given = iter(along)
        x_along, weight_along = [None if constant else next(given) for constant in ctx.wanted]
        # <x_along, dx> + <weight_along, dw> = <grad, convolution(x_along, weight) + convolution(x,
        # weight_along)>
        factors = ([] if x_along is None else [x_along, weight]) + (
            [] if weight_along is None else [x, weight_along]
        )
        by_grad = _empty(ctx.shape.maps())
        _call("convolve", ctx.shape, *factors, *[None] * (4 - len(factors)), by_grad, None, None)
        by_x = by_weight = None
        if x_along is not None and weight_along is not None:
            by_x, by_weight = _gradients_of_convolution(
                x_along, weight_along, grad, ctx.shape, [False, False]
            )
        elif x_along is not None:
            by_weight = _empty(weight.shape)
            _call("convolve_gradient", ctx.shape, x_along, None, grad, None, by_weight)
        elif weight_along is not None:
            by_x = _empty(x.shape)
            _call("convolve_gradient", ctx.shape, None, weight_along, grad, by_x, None)
        return _wanted(ctx.constants, by_x, by_weight, by_grad)


def _as_tuple(outputs):
    return outputs if isinstance(outputs, (tuple, list)) else (outputs,)


def _gradients_of_convolution(x, weight, grad, shape, constants):
    by_x, by_weight = [
        None if constant else _empty(tensor.shape) for tensor, constant in zip((x, weight), constants)
    ]
    _call("convolve_gradient", shape, x, weight, grad, by_x, by_weight)
    return tuple(gradient for gradient in (by_x, by_weight) if gradient is not None)


# --------------------------------------------------------------------------------------- batch norm and so on


class _Normalize(PyLayer):
    """Batch norm by statistics of y itself, max-pool and ReLU."""

    @staticmethod
    def forward(ctx, y, scale, shift, shape, statistics):
        _save(ctx, y, scale, shift)
        ctx.shape, ctx.statistics = shape, statistics
        out = _empty(shape.pooled())
        _call("normalize", shape, y, *statistics, scale, shift, out)
        return out

    @staticmethod
    def backward(ctx, grad):
        gradients = _NormalizeGradient.apply(*ctx.saved_tensor(), grad, ctx.shape, ctx.statistics)
        return _wanted(ctx.constants, *gradients)


class _NormalizeGradient(PyLayer):
    @staticmethod
    def forward(ctx, y, scale, shift, grad, shape, statistics):
        _save(ctx, y, scale, shift, grad)
        ctx.shape, ctx.statistics = shape, statistics
        by_y, by_scale, by_shift = _empty(y.shape), _empty(scale.shape), _empty(shift.shape)
        _call("normalize_gradient", shape, y, *statistics, scale, shift, grad, by_y, by_scale, by_shift)
        return by_y, by_scale, by_shift

    @staticmethod
    def backward(ctx, *along):
        y, scale, shift, grad = ctx.saved_tensor()
        by_y, by_scale, by_grad = _empty(y.shape), _empty(scale.shape), _empty(grad.shape)
        _call(
            "normalize_second",
            ctx.shape,
            y,
            *ctx.statistics,
            scale,
            shift,
            grad,
            *along,
            by_y,
            by_scale,
            by_grad,
        )
        return _wanted(ctx.constants, by_y, by_scale, paddle.zeros_like(shift), by_grad)


def block(
    x: paddle.Tensor,
    weight: paddle.Tensor,
    scale: paddle.Tensor,
    shift: paddle.Tensor,
    pool: bool,
    statistics: Statistics | None = None,
    threads: int | None = None,
) -> tuple[paddle.Tensor, Statistics]:
    """3x3 convolution with padding 1, batch norm, ReLU, and reduction to half the size.

    Args:
        x: (T, N, H, W, C).
        weight, scale, shift: (T, 9 * C, D), (T, 1, D), (T, 1, D).
        pool: True: stride 1, then a 2x2 max-pool; False: stride 2.
        statistics: those of other images that batch norm shall use; then nothing is differentiated.
        threads: how many compute, each some of the tasks; by default `cores()`. It changes no result.

    Returns:
        The output, (T, N, H // 2, W // 2, D) or (T, N, (H + 1) // 2, (W + 1) // 2, D), and the `Statistics`
        of these images, constants.
    """
    tasks, images, height, width, channels = x.shape
    shape = _shape(
        tasks, images, height, width, channels, weight.shape[2], 1 if pool else 2, threads or cores()
    )
    _check_shapes(shape, x, weight, scale, shift)
    if channels % WIDTHS:
        raise ValueError(f"x must have a multiple of {WIDTHS} channels, not {channels}")
    if statistics is not None:
        with paddle.no_grad():
            return _apply_block(x, weight, scale, shift, shape, statistics)
    return _apply_block(x, weight, scale, shift, shape, None)


def _apply_block(x, weight, scale, shift, shape, statistics):
    moments = _Moments()
    y = _Convolve.apply(x, weight, shape, moments)
    return _Normalize.apply(y, scale, shift, shape, _Constants(*(statistics or moments.value))), moments.value


def _check_shapes(shape, x, weight, scale, shift):
    """The library trusts its caller."""
    expected = [[shape.tasks, TAPS * shape.channels, shape.depth]] + [[shape.tasks, 1, shape.depth]] * 2
    if [list(t.shape) for t in (weight, scale, shift)] != expected or shape.depth % WIDTHS or 0 in x.shape:
        raise ValueError(
            f"weight, scale and shift must be {expected}, the last axis a multiple of {WIDTHS}, not "
            f"{[list(t.shape) for t in (weight, scale, shift)]}"
        )


# -------------------------------------------------------------------------------------------- the first block


class Prepared(NamedTuple):
    """Images as the first block takes them: `padded` (T, N, H + 2, W + 2, C) with a border of zeros, and of
    the 9 * C numbers under the kernel mean (T, 9 * C) and covariance (T, 9 * C, 9 * C)."""

    padded: paddle.Tensor
    mean: paddle.Tensor
    covariance: paddle.Tensor
    pool: bool


def prepare(images: paddle.Tensor, pool: bool, threads: int | None = None) -> Prepared:
    """What the first block needs of images, which are constants: it serves for all parameters.

    Args:
        images: (T, N, C, H, W).
        pool: as for `block`.
    """
    images = images.detach()
    tasks, count, channels, height, width = images.shape
    shape = _shape(tasks, count, height, width, channels, WIDTHS, 1 if pool else 2, threads or cores())
    padded = _empty([tasks, count, height + 2, width + 2, channels])
    mean, covariance = (
        _empty([tasks, TAPS * channels]),
        _empty([tasks, TAPS * channels, TAPS * channels]),
    )
    _call("first_prepare", shape, images, padded, mean, covariance)
    return Prepared(padded, mean, covariance, pool)


class _First(PyLayer):
    @staticmethod
    def forward(ctx, weight, scale, shift, shape, images):
        _save(ctx, weight, scale, shift)
        out, choice = _empty(shape.pooled()), paddle.empty(shape.pooled(), dtype="uint8")
        ctx.shape, ctx.images, ctx.choice = shape, images, choice
        _call("first_forward", shape, *images, weight, scale, shift, out, choice)
        return out

    @staticmethod
    def backward(ctx, grad):
        gradients = _FirstGradient.apply(*ctx.saved_tensor(), grad, ctx.shape, ctx.images, ctx.choice)
        return _wanted(ctx.constants, *gradients)


class _FirstGradient(PyLayer):
    @staticmethod
    def forward(ctx, weight, scale, shift, grad, shape, images, choice):
        _save(ctx, weight, scale, shift, grad)
        ctx.shape, ctx.images, ctx.choice = shape, images, choice
        gradients = [_empty(t.shape) for t in (weight, scale, shift)]
        _call("first_gradient", shape, *images, weight, scale, choice, grad, *gradients)
        return tuple(gradients)

    @staticmethod
    def backward(ctx, *along):
        weight, scale, shift, grad = ctx.saved_tensor()
        by_weight, by_scale, by_grad = [_empty(t.shape) for t in (weight, scale, grad)]
        _call(
            "first_second",
            ctx.shape,
            *ctx.images,
            weight,
            scale,
            ctx.choice,
            grad,
            *along,
            by_weight,
            by_scale,
            by_grad,
        )
        return _wanted(ctx.constants, by_weight, by_scale, paddle.zeros_like(shift), by_grad)


def first_block(
    prepared: Prepared,
    weight: paddle.Tensor,
    scale: paddle.Tensor,
    shift: paddle.Tensor,
    statistics: Statistics | None = None,
    threads: int | None = None,
) -> paddle.Tensor:
    """The block of `block` for images, which have few channels and no gradient.

    Args:
        prepared: of these images.
        weight, scale, shift: as for `block`.
        statistics: mean and covariance of other images, as `Prepared` has them, which batch norm shall use.

    Returns:
        The output as `block` has it.
    """
    tasks, images, height, width, channels = prepared.padded.shape
    shape = _shape(
        tasks,
        images,
        height - 2,
        width - 2,
        channels,
        weight.shape[2],
        1 if prepared.pool else 2,
        threads or cores(),
    )
    _check_shapes(shape, prepared.padded, weight, scale, shift)
    mean, covariance = statistics or (prepared.mean, prepared.covariance)
    return _First.apply(weight, scale, shift, shape, _Constants(prepared.padded, mean, covariance))


# ------------------------------------------------------------------------------------------------ the network


def features(
    prepared: Prepared,
    packed: list[paddle.Tensor],
    statistics: list[paddle.Tensor] | None = None,
    threads: int | None = None,
) -> tuple[paddle.Tensor, list[paddle.Tensor]]:
    """The blocks of a network, one after the other.

    Args:
        prepared: of the images.
        packed: for each block weight, scale and shift as `block` takes them.
        statistics: what this returned for other images, which batch norm shall use.

    Returns:
        The last map (T, N, height, width, D), and what batch norm used: mean (T, 1, 9 * C) and covariance
        (T, 9 * C, 9 * C) of the first block, then mean and variance (T, 1, D) of each further one.
    """
    given = [None] * (len(packed) // 3)
    if statistics is not None:
        given = [Statistics(mean.squeeze(1), other) for mean, other in zip(statistics[::2], statistics[1::2])]
        given[1:] = [Statistics(mean, variance.squeeze(1)) for mean, variance in given[1:]]
    x = first_block(prepared, *packed[:3], statistics=given[0], threads=threads)
    used = [prepared.mean.unsqueeze(1), prepared.covariance]
    for number in range(1, len(given)):
        x, own = block(x, *packed[3 * number : 3 * number + 3], prepared.pool, given[number], threads)
        used += [own.mean.unsqueeze(1), own.variance.unsqueeze(1)]
    return x, used if statistics is None else statistics
