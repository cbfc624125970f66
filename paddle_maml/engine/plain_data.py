"""Reading Paddle's files, which are pickles, as data: nothing in them can run, whoever wrote them."""

from __future__ import annotations

import io
import pickle
import pickletools
import re
from typing import Any

import numpy as np

from ..errors import UserError
from ..files import read_whole, unsealed

# Far above what a network has; a hostile file cannot make much of so little.
MAX_BYTES = 1 << 30
MAX_INSTRUCTIONS = 200_000


def read_file(path: str) -> Any:
    """Read a `.pdparams`, `.pdopt` or `.pdstates` file, or another pickle of arrays and plain values; see
    `read_plain_data`."""
    return read_plain_data(read_bytes(path), path)


def read_bytes(path: str) -> bytes:
    """The bytes of a file; UserError if it is missing, no file, or larger than `MAX_BYTES`."""
    try:
        return read_whole(path, MAX_BYTES)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise UserError(f"{path} is refused: {error}.") from error


def read_plain_data(data: bytes, path: str) -> Any:
    """What a pickle of arrays and plain values holds.

    Nothing in it can run: the pickle's instructions are checked first, and the only functions it may name are
    the ones that make arrays, which are replaced by our own. Memory is bounded by its size: arrays are views
    of its bytes, and what pickle's protocol 2 holds as text is turned into bytes once.

    Args:
        data: written by paddle.save or pickle, under any supported Paddle and NumPy; `sealed` or not.
        path: the file that it is from, for messages.
    Returns:
        The dicts, lists, strings, numbers and NumPy arrays in it; arrays are read-only.
    Raises:
        UserError: it is truncated, damaged, or holds something else.
    """
    content = unsealed(data)
    data = bytes(data if content is None else content)
    try:
        _check_instructions(data)
        return _finished(_ArrayUnpickler(data).load())
    except _Forbidden as error:
        raise UserError(f"{path} is refused, because it is not plain data: {error}.") from error
    except Exception as error:
        raise UserError(
            f"{path} is damaged, truncated or no Paddle file ({type(error).__name__}: {error}); take "
            "another copy."
        ) from error


class _Forbidden(Exception):
    """The file asks for something that weights do not need."""


# Constants, containers, the memo, and calls of functions that `find_class` allows. Not among them: opcodes
# that set attributes of classes by name, make instances, use the extension registry or persistent ids.
_ALLOWED = set(
    """
    PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 LONG4
    BINFLOAT SHORT_BINBYTES BINBYTES BINBYTES8 SHORT_BINUNICODE BINUNICODE BINUNICODE8 EMPTY_LIST APPEND
    APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT SETITEM SETITEMS BINGET LONG_BINGET BINPUT
    LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL REDUCE BUILD
    """.split()
)


def _check_instructions(data):
    if not data:
        raise EOFError("the file is empty")
    for count, (opcode, argument, position) in enumerate(pickletools.genops(data), 1):  # noqa: B007
        if opcode.name not in _ALLOWED:
            raise _Forbidden(f"it uses the pickle instruction {opcode.name}")
        if count > MAX_INSTRUCTIONS:
            raise _Forbidden("it has too many parts")
        # The memo is an array as long as its largest index: a few bytes could ask for gigabytes.
        if opcode.name in ("BINPUT", "LONG_BINPUT") and argument > len(data):
            raise ValueError("memo index out of range")
    if position + 1 != len(data):
        raise ValueError("there are bytes after the end")


class _Dtype:
    """Stands for numpy.dtype while a file is read."""

    def __init__(self, code, *_):
        if not isinstance(code, str) or not re.fullmatch(r"[fiu][1248]|b1", code):
            raise _Forbidden(f"it holds an array of type {code!r}")
        self.code, self.order = code, "<"

    def __setstate__(self, state):
        self.order = state[1] if state[1] in ("<", ">") else "|"

    def array(self, data, shape, order="C"):
        if not isinstance(data, bytes):
            raise _Forbidden("it holds an array without bytes")
        # No copy: a file that uses the same bytes a thousand times takes no more memory than the file.
        return np.frombuffer(data, np.dtype(self.order + self.code)).reshape(shape, order=order)


class _Array:
    """Stands for an array until its content is known."""

    def __init__(self, *_):
        self.array = None

    def __setstate__(self, state):
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, _Dtype):
            raise _Forbidden("it holds an array without a type")
        self.array = dtype.array(data, shape, "F" if fortran else "C")


def _scalar(dtype, data):
    return dtype.array(data, ()).item()


def _dict(*items):
    if items:
        raise _Forbidden("it holds a dict made from something else")
    return {}


class _Ndarray:
    """Named as an argument of NumPy's array maker; never made."""

    def __init__(self, *_):
        raise _Forbidden("it makes an array in an unknown way")


def _call(function):
    """A function as an object whose attributes a file cannot set."""

    class Function:
        __slots__ = ()

        def __call__(self, *arguments):
            return function(*arguments)

    return Function()


_FUNCTIONS = {
    ("numpy", "dtype"): _call(_Dtype),
    ("numpy", "ndarray"): _call(_Ndarray),
    ("collections", "OrderedDict"): _call(_dict),
}
for _numpy in ("numpy.core", "numpy._core"):  # NumPy 1 and NumPy 2
    _FUNCTIONS[_numpy + ".multiarray", "_reconstruct"] = _call(_Array)
    _FUNCTIONS[_numpy + ".multiarray", "scalar"] = _call(_scalar)


class _ArrayUnpickler(pickle.Unpickler):
    def __init__(self, data):
        super().__init__(io.BytesIO(data))
        self._unspent = len(data)  # bytes that texts may still be turned into

    def find_class(self, module, name):
        if (module, name) == ("_codecs", "encode"):
            return _call(self._latin1_bytes)
        try:
            return _FUNCTIONS[module, name]
        except KeyError:
            raise _Forbidden(f"it wants to use {module}.{name}") from None

    def _latin1_bytes(self, text, encoding):
        """How pickle's protocol 2 writes bytes: a text, and this call."""
        self._unspent -= len(text)
        if self._unspent < 0:
            raise _Forbidden("it uses one text many times")
        return text.encode("latin1")


def _finished(value, done=None, depth=0):
    """The value with every stand-in replaced by its array. What occurs several times is converted once: files
    can be small and fan out."""
    done = {} if done is None else done
    if id(value) in done:
        return done[id(value)]
    if depth > 20:
        raise _Forbidden("it is nested too deeply")
    if isinstance(value, _Array):
        if value.array is None:
            raise _Forbidden("it holds an array without content")
        result = value.array
    elif isinstance(value, dict):
        result = {
            _finished(key, done, depth + 1): _finished(item, done, depth + 1) for key, item in value.items()
        }
    elif isinstance(value, (list, tuple)):
        result = type(value)([_finished(item, done, depth + 1) for item in value])
    elif value is None or isinstance(value, (str, bytes, bool, int, float)):
        result = value
    else:
        raise _Forbidden("it holds something that is neither an array nor a plain value")
    done[id(value)] = result
    return result
