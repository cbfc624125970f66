"""Weights and training state on disk: checkpoint sets written whole or not at all, and what is read from them
put to use."""

from __future__ import annotations

import os
import re
import shutil
import typing
import zipfile
import zlib

import numpy as np

from .. import files
from ..errors import UserError
from .plain_data import MAX_BYTES, read_file
from .settings import Settings, settings_from_dict

WEIGHTS, BEST, OPTIMIZER, STATES = FILES = "model.pdparams", "best.pdparams", "model.pdopt", "model.pdstates"

_SET_NAME = re.compile(r"checkpoint-(\d+)(?:\.(\d+))?$")
_PARTIAL, _REMOVED = ".checkpoint.partial", ".checkpoint.removed"

# In the place of what weights were trained on: of a file on its own nobody knows it.
UNKNOWN = "unknown"

# paddle.save adds this entry to a state_dict.
_PADDLE_NAMES = "StructuredToParameterName@@"


class Origin(typing.NamedTuple):
    """Where weights come from."""

    settings: Settings  # of their run
    # What their run trains on (`Settings.trains_on`), and what the weights that it started from were trained
    # on; or UNKNOWN.
    trained_on: list


def origin_of(settings, stored):
    """The `Origin` of a run's weights from its `Settings` and a dict that it left, states or report; older
    ones do not say what the weights that they started from were trained on."""
    names = stored.get("trained_on", [UNKNOWN] if stored.get("start_sha256") else [])
    sound = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return Origin(settings, sorted({settings.trains_on, *(names if sound else [UNKNOWN])}))


# ---- a checkpoint set ----


def write_checkpoint(run_folder, iteration, weights, best, optimizer, states):
    """Write a checkpoint set to RUN/checkpoint-ITERATION and remove the older ones.

    The set appears with one rename after everything is on the disk, so a process killed at any moment leaves
    the old set or the new one.

    Args:
        run_folder: the run's folder, which exists.
        iteration: meta-iterations done.
        weights: the learner's state_dict.
        best: the state_dict with the best validation accuracy so far.
        optimizer: the meta-optimizer's state, see `optimizer_state`.
        states: dict of plain values: iteration, settings, and what else the training needs. The digests of
            the other files are added.
    Returns:
        Path of the new set.
    """
    import paddle

    partial = os.path.join(run_folder, _PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    os.mkdir(partial)
    try:
        digests = {}
        for name, content in (
            (WEIGHTS, weights),
            (BEST, best),
            (OPTIMIZER, optimizer),
            (STATES, {**states, "sha256": digests}),
        ):
            path = os.path.join(partial, name)
            paddle.save(content, path)
            files.sync(path)
            digests[name] = files.digest(path)
        files.sync(partial)
        final = _free_name(run_folder, iteration)
        os.rename(partial, final)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    files.sync(run_folder)
    remove_leftovers(run_folder)
    return final


def newest_checkpoint(run_folder):
    """Path of the newest checkpoint set in a run folder, or None; raises UserError if all that is there of a
    set lacks files."""
    sets, damaged = _sets(run_folder)
    if damaged and not sets:
        path, missing = damaged[-1]
        raise UserError(f"The checkpoint {path} lacks {missing}: put it back, or choose another folder.")
    return sets[-1] if sets else None


def remove_leftovers(run_folder):
    """Remove the older sets, and what killed writes and killed removals left. What others put there stays."""
    newest_checkpoint(run_folder)  # raises where nothing should be touched
    for path in _sets(run_folder)[0][:-1]:
        _remove(run_folder, path)
    for name in (_PARTIAL, _REMOVED):
        shutil.rmtree(os.path.join(run_folder, name), ignore_errors=True)
    for name in os.listdir(run_folder):
        if files.is_partial(name):
            os.remove(os.path.join(run_folder, name))


def remove_all(run_folder):
    """Remove all checkpoint sets."""
    for path in _sets(run_folder)[0]:
        _remove(run_folder, path)


def _remove(run_folder, path):
    # Renamed first: a set under its own name is whole, for whoever looks.
    removed = os.path.join(run_folder, _REMOVED)
    shutil.rmtree(removed, ignore_errors=True)
    os.rename(path, removed)
    shutil.rmtree(removed, ignore_errors=True)


def _sets(run_folder):
    """The checkpoint sets, oldest first: a list of paths, and one of (path, a missing file) of those that
    were damaged. What holds other files is somebody else's: other programs name their checkpoints so too."""
    sets, damaged = [], []
    for name in os.listdir(run_folder) if os.path.isdir(run_folder) else []:
        match, path = _SET_NAME.match(name), os.path.join(run_folder, name)
        try:
            content = set(os.listdir(path)) if match else set()
        except OSError:  # a file, or removed in this moment
            continue
        missing = [file for file in FILES if file not in content]
        if content and content <= set(FILES):
            (damaged if missing else sets).append(((int(match[1]), int(match[2] or 0)), path, *missing[:1]))
    return [path for _, path in sorted(sets)], [(path, missing) for _, path, missing in sorted(damaged)]


def _free_name(run_folder, iteration):
    # The same iteration is saved again when an interrupted validation was caught up; the older set must stay
    # until the newer is complete.
    path, tries = os.path.join(run_folder, f"checkpoint-{iteration}"), 0
    while os.path.exists(path):
        tries += 1
        path = os.path.join(run_folder, f"checkpoint-{iteration}.{tries}")
    return path


def read_states(path):
    """The plain values and the `Settings` of a `.pdstates` file; raises UserError if it holds something else,
    or if a file beside it is not the one that was written with it."""
    states = read_file(path)
    if (
        not isinstance(states, dict)
        or not isinstance(states.get("settings"), dict)
        or not isinstance(states.get("sha256"), dict)
    ):
        raise UserError(f"{path} does not hold the state of a run: name a run folder or a checkpoint folder.")
    for name, digest in states["sha256"].items():
        beside = os.path.join(os.path.dirname(path), os.path.basename(str(name)))
        if os.path.isfile(beside) and files.digest(beside) != digest:
            raise UserError(
                f"{beside} is damaged: it is not what was written there; take another copy, or start again "
                "in another folder."
            )
    return states, settings_from_dict(states["settings"])


def stored_settings(run_folder):
    """The `Settings` in a run folder's newest checkpoint, or None where there is none."""
    newest = newest_checkpoint(run_folder)
    return read_states(os.path.join(newest, STATES))[1] if newest else None


def find_weights(path):
    """The weights that a path means.

    Args:
        path: a run folder or a checkpoint folder (their best weights), or a file of weights.
    Returns:
        (file, origin): the `Origin` of the run it belongs to, None for a file on its own.
    Raises:
        UserError: there are none.
    """
    if os.path.isdir(path):
        folder = path if os.path.isfile(os.path.join(path, STATES)) else newest_checkpoint(path)
        if folder is None:
            raise UserError(
                f"The folder {path} holds no checkpoint: name the folder of a run, or a file of weights."
            )
        path = os.path.join(folder, BEST)
    elif not os.path.isfile(path):
        raise UserError(f"There is no file or folder {path}.")
    states = os.path.join(os.path.dirname(path), STATES)
    if not os.path.isfile(states):
        return path, None
    stored, settings = read_states(states)
    return path, origin_of(settings, stored)


# ---- weights into a learner ----


def load_weights(learner, path, fit=False):
    """Load weights into a learner.

    Args:
        learner: a `MetaLearner`.
        path: `.pdparams` of the learner or of its network alone, or the competition's published weights.
        fit: also take the weights of a learner with more classes, whose linear layer loses the last ones, or
            with other inner steps, where the rates of the last step stand for those of further ones.
    Raises:
        UserError: the file is unreadable, or its parameters are not this network's; names the first that
            differs.
    """
    content = _read_competition(path) if zipfile.is_zipfile(path) else read_file(path)
    if isinstance(content, list):
        content = _named(learner.net, content, path)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no weights: expected named parameters.")
    content = {name: array for name, array in content.items() if name != _PADDLE_NAMES}
    if "inner_rates" in content and learner.inner_rates is None:
        raise UserError(
            f"{path} holds learned inner rates: "
            + (
                "to start from them, train with --learn-inner-lr."
                if fit
                else (
                    "only its run's settings make them usable, so name the run or checkpoint folder, or "
                    "weights that come with the library by --pretrained."
                )
            )
        )
    layer = learner.net if content.keys() == learner.net.state_dict().keys() else learner
    set_weights(layer, _fitted(content, layer) if fit else content, path)


def _fitted(arrays, layer):
    """The arrays with the linear layer and the inner rates of the sizes they have in a layer, where they can
    be had."""
    arrays = dict(arrays)
    for name, tensor in layer.state_dict().items():
        array = arrays.get(name)
        if not isinstance(array, np.ndarray) or array.ndim != len(tensor.shape) or not array.size:
            continue
        if name.startswith("linear."):
            arrays[name] = array[..., : tensor.shape[-1]]
        elif name == "inner_rates":
            further = max(0, tensor.shape[0] - len(array))
            arrays[name] = np.concatenate([array[: tensor.shape[0]], *[array[-1:]] * further])
    return arrays


def load_competition_weights(net, path):
    """Load the weights that the PaddlePaddle competition's reproduction published into a network.

    Args:
        net: a `MAML` network of width 64, for 28x28 images, with the same n_way.
        path: `.npz` with p00 .. p17, or the original pickle of a list of 18 NumPy arrays; both in the order
            of `net.parameters()`.
    Raises:
        UserError: the file is unreadable, or a shape differs.
    """
    set_weights(net, _named(net, _read_competition(path), path), path)


def set_weights(layer, arrays, path):
    """Give a layer, learner or network, the arrays of a state_dict read from `path`; raises UserError unless
    names and shapes agree."""
    own = layer.state_dict()
    missing, surplus = (
        [name for name in own if name not in arrays],
        [name for name in arrays if name not in own],
    )
    if missing or surplus:
        problem = f"{missing[0]} is missing" if missing else f"{surplus[0]!r} is unknown"
        raise UserError(f"{path} holds the weights of another kind of network: {problem}.")
    for name, tensor in own.items():
        _check_shape(path, name, arrays[name], tensor)
    # A copy: Paddle may keep a view of what it is given, and these arrays are views of the file.
    layer.set_state_dict({name: np.array(arrays[name], tensor.numpy().dtype) for name, tensor in own.items()})


def _named(net, arrays, path):
    """Arrays in the order of a network's parameters, by name."""
    names = [name for name, _ in net.named_parameters()]
    if len(arrays) != len(names):
        raise UserError(f"{path} holds {len(arrays)} arrays, but this network has {len(names)} parameters.")
    return dict(zip(names, arrays))


def _check_shape(path, name, array, tensor):
    shape = list(array.shape) if isinstance(array, np.ndarray) else type(array).__name__
    if shape != list(tensor.shape):
        raise UserError(
            f"{path} belongs to another network: {name} has shape {shape} in the file, but "
            f"{list(tensor.shape)} here; "
            "check n_way, width, image_size, architecture and inner_steps."
        )
    if array.dtype.kind != "f" or not np.isfinite(array).all():
        raise UserError(f"{path} is damaged: {name} does not hold finite numbers.")


def _read_competition(path):
    if not zipfile.is_zipfile(path):
        content = read_file(path)
        if not isinstance(content, list):
            raise UserError(f"{path} does not hold the competition's weights: expected a list of arrays.")
        return content
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > MAX_BYTES:
                raise UserError(f"{path} is refused, because it unpacks to more than {MAX_BYTES} bytes.")
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            return [arrays[name] for name in sorted(arrays.files)]
    except (OSError, ValueError, EOFError, KeyError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is damaged or holds no arrays ({type(error).__name__}: {error}).") from error


# ---- the meta-optimizer's state ----


def optimizer_state(optimizer, learner):
    """The state of a meta-optimizer as a dict of arrays.

    Paddle names its entries by numbers that count the tensors made before in the process; here they bear the
    parameters' own names, so that another process can resume.
    """
    # Paddle does not save an empty dict, and before the first step there is nothing else.
    return {name: tensor.numpy() for name, _, tensor in _optimizer_slots(optimizer, learner)} or {"steps": 0}


def set_optimizer_state(optimizer, learner, state, path):
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
