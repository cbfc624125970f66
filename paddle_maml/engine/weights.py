"""Arrays into a learner and its meta-optimizer, and out of them, by the parameters' own names."""

from __future__ import annotations

import io
import re
import zipfile
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..errors import UserError
from .plain_data import MAX_BYTES, read_bytes, read_plain_data

if TYPE_CHECKING:
    import paddle

# paddle.save adds this entry to a state_dict.
_PADDLE_NAMES = "StructuredToParameterName@@"
# What a learner has learned beside the network's weights; where a file has these alone, it keeps its own.
RATES, MOMENTS = "inner_rates", "second_moment"


class WeightsFile(NamedTuple):
    """A file of weights as it was when it was found: a run in training replaces its checkpoints."""

    path: str
    data: bytes

    def __fspath__(self) -> str:
        return self.path

    def __str__(self) -> str:
        return self.path


def load_weights(learner: paddle.nn.Layer, file: str | WeightsFile, fit: bool = False) -> None:
    """Load weights into a learner, or a network alone.

    Args:
        learner: a `MetaLearner` or a network.
        file: path of, or what was read of, a `.pdparams` of the learner or of its network alone; or the
            weights that the competition's reproduction published, in the order of `net.parameters()`: `.npz`
            with p00 .. p17, or the original pickle of a list of 18 NumPy arrays.
        fit: also take weights that `fitted` makes fit.
    Raises:
        UserError: the file is unreadable, or its parameters are not this network's; names the first that
            differs.
    """
    path, data = file if isinstance(file, WeightsFile) else (file, read_bytes(file))
    if zipfile.is_zipfile(io.BytesIO(data)):
        arrays = read_npz(path, data)
        content = [arrays[name] for name in sorted(arrays)]
    else:
        content = read_plain_data(data, path)
    own = learner.state_dict()
    if isinstance(content, list):
        content = _named(own, content, path)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no weights: expected named parameters.")
    content = {name: array for name, array in content.items() if name != _PADDLE_NAMES}
    if RATES in content and RATES not in own:
        way_out = (
            "only its run's settings make them usable, so name the run or checkpoint folder, or weights "
            "that come with the library by --pretrained."
        )
        way_out = "to start from them, train with --learn-inner-lr." if fit else way_out
        raise UserError(f"{path} holds learned inner rates: {way_out}")
    set_weights(learner, fitted(content, own) if fit else content, path)


def parameters_of(learner: paddle.nn.Layer) -> int:
    """How many numbers a learner has learned for a new task; the state of an inner Adam is none of them."""
    trained = (p for name, p in learner.named_parameters() if name != MOMENTS and not p.stop_gradient)
    return sum(p.size for p in trained)


def fitted(arrays: dict, own: dict) -> dict:
    """Arrays of a learner with more classes, whose last layer loses the last ones, or with other inner steps,
    where the rates of the last step stand for those of further ones. The second moment of an inner Adam is
    left out where it does not fit.

    Args:
        arrays: by name; what else they hold, or lack, stays as it is.
        own: the `state_dict` of the learner that they are to fit.
    """
    arrays = dict(arrays)
    *_, head = ["", *(name.rpartition(".")[0] for name in own if re.match(r"linear\d*[.]", name))]
    for name, tensor in own.items():
        array = arrays.get(name)
        if not isinstance(array, np.ndarray) or array.ndim != len(tensor.shape) or not array.size:
            continue
        if head and name.rpartition(".")[0] == head:
            arrays[name] = array[..., : tensor.shape[-1]]
        elif name == RATES:
            further = max(0, tensor.shape[0] - len(array))
            arrays[name] = np.concatenate([array[: tensor.shape[0]], *[array[-1:]] * further])
    if MOMENTS in arrays and np.shape(arrays[MOMENTS]) != tuple(own[MOMENTS].shape if MOMENTS in own else ()):
        del arrays[MOMENTS]
    return arrays


def set_weights(layer: paddle.nn.Layer, arrays: dict, path: str) -> None:
    """Give a layer, learner or network, the arrays of a state_dict read from `path`; raises UserError unless
    names and shapes agree. What only training needs may be missing on either side."""
    training_only = getattr(layer, "TRAINING_ONLY", ())
    may_lack, state = (RATES, MOMENTS, *training_only), layer.state_dict()
    own = {name: tensor for name, tensor in state.items() if name in arrays or name not in may_lack}
    arrays = {name: array for name, array in arrays.items() if name in own or name not in training_only}
    missing = [name for name in own if name not in arrays]
    surplus = [name for name in arrays if name not in own]
    if missing or surplus:
        problem = f"{missing[0]} is missing" if missing else f"{surplus[0]!r} is unknown"
        raise UserError(f"{path} holds the weights of another kind of network: {problem}.")
    for name, tensor in own.items():
        _check_shape(path, name, arrays[name], tensor)
    # A copy: Paddle may keep a view of what it is given, and these arrays are views of the file.
    layer.set_state_dict({name: np.array(arrays[name], tensor.numpy().dtype) for name, tensor in own.items()})


def _named(own, arrays, path):
    """Arrays in the order of a network's parameters, by name."""
    names = [name for name in own if name not in (RATES, MOMENTS)]
    if len(arrays) != len(names):
        raise UserError(f"{path} holds {len(arrays)} arrays, but this network has {len(names)} parameters.")
    return dict(zip(names, arrays))


def _check_shape(path, name, array, tensor):
    shape = list(array.shape) if isinstance(array, np.ndarray) else type(array).__name__
    if shape != list(tensor.shape):
        raise UserError(
            f"{path} belongs to another network: {name} has shape {shape} in the file, but "
            f"{list(tensor.shape)} here; check dataset, network, n_way, width, hidden, lstm_hidden, "
            "image_size, in_channels, architecture and inner_steps."
        )
    if array.dtype.kind != "f" or not np.isfinite(array).all():
        raise UserError(f"{path} is damaged: {name} does not hold finite numbers.")


def read_npz(path: str, data: bytes | None = None) -> dict[str, np.ndarray]:
    """The arrays of a .npz by name, in the file or in what was read of it; raises UserError if it is damaged
    or holds anything else. Nothing in it can run."""
    data = read_bytes(path) if data is None else data
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > MAX_BYTES:
                raise UserError(f"{path} is refused, because it unpacks to more than {MAX_BYTES} bytes.")
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            content = {name: arrays[name] for name in arrays.files}
        strange = next((name for name, array in content.items() if not isinstance(array, np.ndarray)), None)
        if strange is not None:
            raise ValueError(f"{strange} is no array")
        return content
    except UserError:
        raise
    except Exception as error:  # of damaged files zipfile and NumPy raise more than they say
        raise UserError(f"{path} is damaged or holds no arrays ({type(error).__name__}: {error}).") from error


# ---- the meta-optimizer's state ----


def optimizer_state(optimizer: paddle.optimizer.Optimizer, learner: paddle.nn.Layer) -> dict:
    """The state of a meta-optimizer as a dict of arrays.

    Paddle names its entries by numbers that count the tensors made before in the process; here they bear the
    parameters' own names, so that another process can resume.
    """
    # Paddle does not save an empty dict, and before the first step there is nothing else.
    return {name: tensor.numpy() for name, _, tensor in _optimizer_slots(optimizer, learner)} or {"steps": 0}


def set_optimizer_state(
    optimizer: paddle.optimizer.Optimizer, learner: paddle.nn.Layer, state: dict, path: str
) -> None:
    """Give a new meta-optimizer the state that `optimizer_state` returned. The learner's weights do not
    change.

    Raises:
        UserError: the state read from `path` does not belong to this optimizer and learner.
    """
    # Paddle makes the entries at the first step: with zero gradients from zero moments, Adam moves nothing.
    sum((parameter * 0.0).sum() for parameter in learner.parameters()).backward()
    optimizer.step()
    optimizer.clear_grad()
    renamed = {key: value for key, value in optimizer.state_dict().items() if key == "LR_Scheduler"}
    for name, key, tensor in _optimizer_slots(optimizer, learner):
        if name not in state:
            raise UserError(f"{path} belongs to another optimizer or network: {name} is missing.")
        _check_shape(path, name, state[name], tensor)
        renamed[key] = np.array(state[name], tensor.numpy().dtype)
    optimizer.set_state_dict(renamed)


def _optimizer_slots(optimizer, learner):
    """Yield (our name, Paddle's name, tensor) of each entry, such as ("net.linear.bias/moment1",
    "param_7_moment1_0", ...)."""
    names = {tensor.name: name for name, tensor in learner.state_dict().items()}
    for key, tensor in optimizer.state_dict().items():
        owner = max((name for name in names if key.startswith(name + "_")), key=len, default=None)
        if owner is not None:  # the schedule's entry is no tensor: it follows from the iteration
            slot = re.sub(r"_\d+$", "", key[len(owner) + 1 :])
            yield f"{names[owner]}/{slot}", key, tensor
