"""Weights of the four blocks and of the perceptron as other frameworks lay them out.

    paddle       a state_dict: block1.conv_weight (out, in, 3, 3), linear.weight (features, classes)
    pytorch      a state_dict: block1.conv.weight the same, linear.weight (classes, features)
    jax          arrays with channels last: block1/conv/kernel (3, 3, in, out), linear/kernel (features,
                 classes), the features of the last map in the order of rows, columns, channels
    competition  p00, p01, ... in the order of the parameters, as in paddle

Elsewhere the features of the last map are in the order of channels, rows, columns.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import zipfile
from pathlib import Path
from typing import Callable

import numpy as np

from ..engine.plain_data import MAX_BYTES, read_file
from ..engine.weights import RATES, read_npz
from ..errors import UserError
from ..files import write_whole
from .format import npz_file

_BLOCK = ("conv_weight", "conv_bias", "norm_weight", "norm_bias")
_NETWORK = [f"block{number}.{name}" for number in range(1, 5) for name in _BLOCK]
_NETWORK += ["linear.weight", "linear.bias"]
_NAME = re.compile(rf"(block[1-4]\.(conv|norm)_|linear\d*\.|norm\d+\.)(weight|bias)|{RATES}")
_IS_LINEAR = re.compile(r"linear\d*[./](weight|kernel)")


def convert(source: str, target: str, of: str, to: str) -> None:
    """Read weights in one layout and write them in another.

    Args:
        source, target: .pdparams for the layout paddle, else .safetensors or .npz; the competition's also as
            the pickle of a list of arrays that it published.
        of, to: the layouts, of `LAYOUTS`.
    Raises:
        UserError: a file that cannot be read or that holds something else, or weights that the layout has no
            place for.
    """
    kind = Path(target).suffix
    kinds = (".pdparams",) if to == "paddle" else (".safetensors", ".npz")
    if kind not in kinds:
        raise UserError(f"The layout {to} is written as {' or '.join(kinds)}, and not as {target}.")
    weights = read_weights(source, of)
    arrays = LAYOUTS[to][1](weights)
    if to == "paddle":
        # Here, because nothing else needs Paddle.
        import paddle

        file = io.BytesIO()
        paddle.save(
            {name: paddle.to_tensor(np.ascontiguousarray(array)) for name, array in arrays.items()}, file
        )
        write_whole(target, file.getvalue())
    else:
        write_whole(target, safetensors_file(arrays) if kind == ".safetensors" else npz_file(arrays))


def read_weights(path: str | os.PathLike, layout: str) -> dict[str, np.ndarray]:
    """The weights in a file of some layout, in Paddle's.

    Raises:
        UserError: the file cannot be read, or what it holds is not of that layout.
    """
    if not os.path.isfile(path):
        raise UserError(f"There is no file of weights {path}.")
    if Path(path).suffix == ".safetensors":
        content = read_safetensors(path)
    else:
        content = read_npz(path) if zipfile.is_zipfile(path) else read_file(path)
    if isinstance(content, list):
        content = {f"p{number:02d}": array for number, array in enumerate(content)}
    arrays = content if isinstance(content, dict) else {}
    arrays = {name: array for name, array in arrays.items() if isinstance(array, np.ndarray)}
    try:
        weights = LAYOUTS[layout][0](arrays)
    except (ValueError, KeyError, IndexError):
        weights = {}
    floating = all(array.dtype in (np.float32, np.float64) for array in weights.values())
    if not weights or not floating or not all(_NAME.fullmatch(name) for name in weights):
        names = ", ".join(sorted(map(str, arrays))[:3]) or "no arrays"
        raise UserError(f"{path} is not in the layout {layout} (it holds {names}): name it with --from.")
    return weights


# ---- the layouts ----


def _to_pytorch(weights):
    return {
        re.sub("(conv|norm)_", r"\1.", name): array.T if _IS_LINEAR.fullmatch(name) else array
        for name, array in weights.items()
    }


def _from_pytorch(arrays):
    return {
        re.sub(r"(conv|norm)\.", r"\1_", name): array.T if _IS_LINEAR.fullmatch(name) else array
        for name, array in arrays.items()
    }


def _to_jax(weights):
    result = {}
    for name, array in weights.items():
        place, _, kind = re.sub("(conv|norm)_", r"\1.", name).rpartition(".")
        if kind == "weight":
            kind = "scale" if "norm" in place else "kernel"
        array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
        if name == "linear.weight":
            array = _features(array, weights["block4.conv_weight"].shape[0], channels_last=True)
        result["/".join(filter(None, [place.replace(".", "/"), kind]))] = array
    return result


def _from_jax(arrays):
    result = {}
    if any("." in name for name in arrays):
        return {}
    for name, array in arrays.items():
        place, _, kind = name.rpartition("/")
        kind = "weight" if kind in ("scale", "kernel") else kind
        array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
        if name == "linear/kernel":
            array = _features(array, arrays["block4/conv/kernel"].shape[-1], channels_last=False)
        place = place.replace("/", ".")
        result[re.sub(r"(conv|norm)\.", r"\1_", f"{place}.{kind}" if place else kind)] = array
    return result


def _features(weight, channels, channels_last):
    """The rows of a linear weight (features, classes) with the features in another order."""
    side = math.isqrt(len(weight) // channels)
    shape = (channels, side, side) if channels_last else (side, side, channels)
    order = np.arange(len(weight)).reshape(shape).transpose((1, 2, 0) if channels_last else (2, 0, 1))
    return weight[order.ravel()]


def _to_competition(weights):
    if set(weights) != set(_NETWORK):
        other = next(iter(sorted(set(weights) ^ set(_NETWORK))))
        raise UserError(f"The competition's order is for the four blocks alone: {other} does not suit it.")
    return {f"p{number:02d}": weights[name] for number, name in enumerate(_NETWORK)}


def _from_competition(arrays):
    if sorted(arrays) != [f"p{number:02d}" for number in range(len(_NETWORK))]:
        return {}
    return {name: arrays[f"p{number:02d}"] for number, name in enumerate(_NETWORK)}


# The functions from and to each layout.
LAYOUTS: dict[str, tuple[Callable, Callable]] = {
    "paddle": (dict, dict),
    "pytorch": (_from_pytorch, _to_pytorch),
    "jax": (_from_jax, _to_jax),
    "competition": (_from_competition, _to_competition),
}


# ---- safetensors: eight bytes with the length of a JSON header, the header, the arrays' bytes ----

_DTYPES = {"F32": "<f4", "F64": "<f8"}


def safetensors_file(arrays: dict[str, np.ndarray]) -> bytes:
    """The bytes of a .safetensors file (huggingface.co/docs/safetensors) of float32 and float64 arrays."""
    header, data = {}, b""
    for name, array in arrays.items():
        code = next(code for code, dtype in _DTYPES.items() if np.dtype(dtype) == array.dtype)
        content = np.ascontiguousarray(array, _DTYPES[code]).tobytes()
        offsets = [len(data), len(data) + len(content)]
        header[name] = {"dtype": code, "shape": list(array.shape), "data_offsets": offsets}
        data += content
    text = json.dumps(header).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def read_safetensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The float32 and float64 arrays of a .safetensors file by name; UserError if it is damaged."""
    size = os.path.getsize(path)
    if size > MAX_BYTES:
        raise UserError(f"{path} is refused, because it is larger than {MAX_BYTES} bytes.")
    data = Path(path).read_bytes()
    try:
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:start].decode("utf-8"))
        result = {}
        for name, entry in header.items():
            if name != "__metadata__":
                first, last = entry["data_offsets"]
                part = data[start + first : start + last]
                result[name] = np.frombuffer(part, _DTYPES[entry["dtype"]]).reshape(entry["shape"])
        return result
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        message = f"{path} is damaged or no safetensors file of float32 and float64"
        raise UserError(f"{message} ({type(error).__name__}: {error}).") from error
