"""The files of an export and of a trace, as docs/interchange.md describes them: written, read and checked.

Nothing here needs Paddle.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from ..engine.weights import read_npz
from ..errors import UserError
from ..files import write_together, write_whole
from ..report.tables import json_file

EXPORT, TRACE, VERSION = "paddle_maml interchange", "paddle_maml trace", 1
ABOUT = "interchange.json"
PARTS = ("train", "test")
ORDERS, DTYPES = (1, 2), ("float32", "float64")
WEIGHTS_AFTER = (1, 2, 10)  # meta-iterations

# What a reader relies on in interchange.json.
_FIELDS = {
    "n_way": int,
    "k_shot": int,
    "k_query": int,
    "test_k_query": int,
    "inner_steps": int,
    "test_inner_steps": int,
    "inner_lr": float,
    "meta_batch": int,
    "iterations": int,
    "meta_lr": list,
    "adam": dict,
    "architecture": str,
    "batch_norm_epsilon": float,
    "parameters": list,
    "test_episodes": int,
    "weights_after": list,
    "files": dict,
}
_ABOUT_TRACE = {"export": str, "order": int, "dtype": str, "framework": str, "framework_version": str}


@dataclasses.dataclass(frozen=True)
class Export:
    """An export in memory.

    Args:
        about: what interchange.json holds, plain values.
        weights: initial weights by name, float32.
        episodes: for "train" and "test" the arrays of the file of that name.
    """

    about: dict
    weights: dict
    episodes: dict

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The parameters' shapes, by name, in their order."""
        return {parameter["name"]: tuple(parameter["shape"]) for parameter in self.about["parameters"]}

    @property
    def idle(self) -> set[str]:
        """The parameters whose true gradient is zero."""
        return {p["name"] for p in self.about["parameters"] if p["zero_gradient"]}

    def episode_arrays(self, part: str, numbers: range) -> tuple[np.ndarray, ...]:
        """x_spt float32 (T, N, C, H, W), y_spt int64 (T, N), x_qry and y_qry of these episodes of a part."""
        arrays, result = self.episodes[part], []
        for name in ("support", "query"):
            images = arrays["images"][arrays[name][numbers.start : numbers.stop]]
            labels = np.tile(arrays[f"{name}_labels"].astype(np.int64), (len(numbers), 1))
            result += [images.astype(np.float32) / np.float32(255) * np.float32(2) - np.float32(1), labels]
        return tuple(result)

    def quantities(self) -> dict[str, tuple[int, ...]]:
        """The shape of each array of a trace, by name."""
        about = self.about
        by_step = (about["meta_batch"], about["inner_steps"] + 1)
        by_iteration, by_episode = (about["iterations"],), (about["test_episodes"],)
        result = {"support_loss": by_step, "query_loss": by_step}
        for group in ["gradient", *(f"weights_after_{n}" for n in about["weights_after"])]:
            result.update({f"{group}/{name}": shape for name, shape in self.shapes.items()})
        result.update(dict.fromkeys(("loss", "accuracy", "seconds"), by_iteration))
        return {**result, "test_loss": by_episode, "test_accuracy": by_episode}

    def write(self, folder: str | os.PathLike, traces: list[Trace]) -> None:
        """Write the export with its expected traces. Those of an export that was there before go; what others
        put into the folder stays."""
        files = {"weights.npz": npz_file(self.weights)}
        files.update({f"{part}.npz": npz_file(arrays) for part, arrays in self.episodes.items()})
        files.update({expected_name(t.about["order"], t.about["dtype"]): t.as_file() for t in traces})
        write_together(folder, {**files, ABOUT: json_file(self.about)})
        for order, dtype in itertools.product(ORDERS, DTYPES):
            if expected_name(order, dtype) not in files:
                Path(folder, expected_name(order, dtype)).unlink(missing_ok=True)


@dataclasses.dataclass(frozen=True)
class Trace:
    """What an implementation computed from an export.

    Args:
        about: the export's id, order, dtype, framework, framework_version; and, where they are known, reader,
            lines, memory_bytes.
        arrays: the quantities by name.
    """

    about: dict
    arrays: dict

    def as_file(self) -> bytes:
        """The bytes of the .npz."""
        text = json.dumps({"format": TRACE, "version": VERSION, **self.about}, allow_nan=False)
        return npz_file({"about": np.frombuffer(text.encode("utf-8"), np.uint8), **self.arrays})

    def write(self, path: str | os.PathLike) -> None:
        """Write the trace, whole or not at all."""
        write_whole(path, self.as_file())


def identified(about: dict, weights: dict, episodes: dict) -> Export:
    """An export whose `about` names the files' digests, and has an id made of all of it."""
    files = {"weights.npz": weights, **{f"{part}.npz": arrays for part, arrays in episodes.items()}}
    about = {"format": EXPORT, "version": VERSION, **about}
    about["files"] = {name: hashlib.sha256(npz_file(arrays)).hexdigest() for name, arrays in files.items()}
    return Export({**about, "id": _id(about)}, weights, episodes)


def expected_name(order: int, dtype: str) -> str:
    """The name of the file with our own trace."""
    return f"expected_order{order}_{dtype}.npz"


def npz_file(arrays: dict[str, np.ndarray]) -> bytes:
    """The bytes of a .npz: little-endian, C order, without compression, the same for the same arrays."""
    file = io.BytesIO()
    in_order = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    np.savez(file, **{name: a.astype(a.dtype.newbyteorder("<")) for name, a in in_order.items()})
    return file.getvalue()


# ---- reading ----


def read_export(folder: str | os.PathLike) -> Export:
    """Read and check an export.

    Raises:
        UserError: it is none, of another version, incomplete, or not what was written.
    """
    path = Path(folder, ABOUT)
    if not path.is_file():
        raise UserError(f"{folder} is no export: it has no {ABOUT}; `interchange export` makes one.")
    about = _json(path.read_bytes(), path)
    _check_format(about, EXPORT, path)
    wrong = next((name for name, kind in _FIELDS.items() if not isinstance(about.get(name), kind)), None)
    if wrong or about.get("id") != _id(about):
        raise UserError(f"{path} is damaged{f', {wrong} is missing' if wrong else ''}: export anew.")
    arrays = {}
    for name in ("weights", *PARTS):
        file = Path(folder, f"{name}.npz")
        if not file.is_file():
            raise UserError(f"{folder} is cut short: {file.name} is missing; export anew.")
        if hashlib.sha256(file.read_bytes()).hexdigest() != about["files"].get(file.name):
            raise UserError(f"{file} is damaged or was cut short: it is not what was exported; export anew.")
        arrays[name] = read_npz(file)
    return Export(about, arrays.pop("weights"), arrays)


def read_expected(folder: str | os.PathLike, export: Export, order: int, dtype: str) -> Trace:
    """Our own trace of an export; UserError where it was exported without."""
    path = Path(folder, expected_name(order, dtype))
    if not path.is_file():
        raise UserError(
            f"{folder} has no expected trace of order {order} in {dtype}: export with --orders {order} "
            f"--dtypes {dtype}."
        )
    return read_trace(path, export)


def read_trace(path: str | os.PathLike, export: Export) -> Trace:
    """Read a trace and check it against its export.

    Raises:
        UserError: it is none, of another version or export, lacks a quantity, or one has another shape or
            is not of finite numbers.
    """
    if not os.path.isfile(path):
        raise UserError(f"There is no trace {path}: a reader writes it.")
    arrays = read_npz(path)
    text = arrays.pop("about", None)
    if text is None or text.dtype != np.uint8:
        raise UserError(f"{path} is no trace: it has no array about, of uint8.")
    about = _json(text.tobytes(), path)
    _check_format(about, TRACE, path)
    for name, kind in _ABOUT_TRACE.items():
        if not isinstance(about.get(name), kind):
            raise UserError(f"{path} does not say its {name}: put it into about.")
    if about["export"] != export.about["id"]:
        raise UserError(f"{path} is of another export: let the reader read this one.")
    for name, allowed in (("order", ORDERS), ("dtype", DTYPES)):
        if about[name] not in allowed:
            raise UserError(f"{path} has {name} {about[name]!r}, but it must be one of {allowed}.")
    for name, shape in export.quantities().items():
        if name not in arrays:
            raise UserError(f"{path} lacks the quantity {name}: let the reader write it.")
        if arrays[name].shape != shape:
            raise UserError(f"{path} has {name} of shape {arrays[name].shape}, but it must be {shape}.")
        if arrays[name].dtype.kind != "f" or not np.isfinite(arrays[name]).all():
            raise UserError(f"{path} has {name} that is not of finite floating-point numbers.")
    return Trace(about, arrays)


def _id(about):
    """The SHA-256 of everything in `about` but the id."""
    rest = {name: value for name, value in about.items() if name != "id"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode("utf-8")).hexdigest()


def _json(data, path) -> dict[str, Any]:
    try:
        about = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: it holds no JSON ({error}).") from error
    if not isinstance(about, dict):
        raise UserError(f"{path} is damaged: its JSON is no object.")
    return about


def _check_format(about, wanted, path):
    if about.get("format") != wanted:
        raise UserError(f"{path} has the format {about.get('format')!r}, but must have {wanted!r}.")
    if about.get("version") != VERSION:
        raise UserError(
            f"{path} has version {about.get('version')!r} of the format, but this library reads {VERSION}."
        )
