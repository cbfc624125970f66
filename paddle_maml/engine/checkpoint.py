"""Checkpoint sets: the state of a run on disk, written whole or not at all."""

from __future__ import annotations

import itertools
import os
import re
import shutil

from .. import files
from ..errors import UserError
from .plain_data import read_file
from .settings import Settings, settings_from_dict

WEIGHTS, BEST, OPTIMIZER, STATES = FILES = "model.pdparams", "best.pdparams", "model.pdopt", "model.pdstates"
# In the sets of runs that have them: the moving average of the weights, and those of the best validations.
AVERAGE, KEPT = "average.pdparams", "kept-{iteration}.pdparams"

_MORE = re.compile(r"average\.pdparams|kept-\d+\.pdparams")
_SET_NAME = re.compile(r"checkpoint-(\d+)(?:\.(\d+))?$")
_PARTIAL, _REMOVED = ".checkpoint.partial", ".checkpoint.removed"


def write_checkpoint(
    run_folder: str,
    iteration: int,
    weights: dict,
    best: dict,
    optimizer: dict,
    states: dict,
    average: dict | None = None,
    kept: dict[int, dict] | None = None,
) -> str:
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
        average: the moving average of the weights, where the run has one.
        kept: the weights of the best validations, by meta-iteration; they are written once, and the next sets
            link to the same files.
    Returns:
        Path of the new set.
    """
    import paddle  # here, because reading does without

    partial = os.path.join(run_folder, _PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    os.mkdir(partial)
    before, digests = newest_checkpoint(run_folder), {}
    contents = {WEIGHTS: weights, BEST: best, OPTIMIZER: optimizer}
    if average is not None:
        contents[AVERAGE] = average
    contents.update({KEPT.format(iteration=number): arrays for number, arrays in (kept or {}).items()})
    contents[STATES] = {**states, "sha256": digests}  # the last: it has the digests of the others
    try:
        for name, content in contents.items():
            path = os.path.join(partial, name)
            if not (name.startswith("kept-") and before and _linked(os.path.join(before, name), path)):
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


def _linked(source, path):
    """Whether a second name could be given to a file; it cannot where there is none, and on some disks."""
    try:
        os.link(source, path)
    except OSError:
        return False
    return True


def newest_checkpoint(run_folder: str) -> str | None:
    """Path of the newest checkpoint set in a run folder, or None; raises UserError if all that is there of a
    set lacks files."""
    sets, damaged = _sets(run_folder)
    if damaged and not sets:
        path, missing = damaged[-1]
        raise UserError(f"The checkpoint {path} lacks {missing}: put it back, or choose another folder.")
    return sets[-1] if sets else None


def remove_leftovers(run_folder: str) -> None:
    """Remove the older sets, and what killed writes and killed removals left. What others put there stays."""
    newest_checkpoint(run_folder)  # raises where nothing should be touched
    for path in _sets(run_folder)[0][:-1]:
        _remove(run_folder, path)
    for name in (_PARTIAL, _REMOVED):
        shutil.rmtree(os.path.join(run_folder, name), ignore_errors=True)
    for name in os.listdir(run_folder):
        if files.is_partial(name):
            os.remove(os.path.join(run_folder, name))


def remove_all(run_folder: str) -> None:
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
        if content and all(file in FILES or _MORE.fullmatch(file) for file in content):
            (damaged if missing else sets).append(((int(match[1]), int(match[2] or 0)), path, *missing[:1]))
    return [path for _, path in sorted(sets)], [(path, missing) for _, path, missing in sorted(damaged)]


def _free_name(run_folder, iteration):
    # The same iteration is saved again when an interrupted validation was caught up; the older set must stay
    # until the newer is complete.
    path = os.path.join(run_folder, f"checkpoint-{iteration}")
    names = (path if tries == 0 else f"{path}.{tries}" for tries in itertools.count())
    return next(name for name in names if not os.path.exists(name))


def read_states(path: str) -> tuple[dict, Settings]:
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


def stored_settings(run_folder: str) -> Settings | None:
    """The `Settings` in a run folder's newest checkpoint, or None where there is none."""
    newest = newest_checkpoint(run_folder)
    return read_states(os.path.join(newest, STATES))[1] if newest else None


def best_weights(folder: str) -> str:
    """The file of the best weights of a run folder or checkpoint folder; UserError if there is none."""
    return os.path.join(_set_of(folder), BEST)


def kept_weights(folder: str) -> dict[int, str]:
    """The weights that a run kept of its best validations, the best first: their files by meta-iteration, in
    its folder or checkpoint folder; UserError if it kept none."""
    found = _set_of(folder)
    kept = read_states(os.path.join(found, STATES))[0].get("kept")
    if not isinstance(kept, list) or not all(
        isinstance(entry, dict) and type(entry.get("iteration")) is int for entry in kept
    ):
        kept = []
    numbers = [entry["iteration"] for entry in kept]
    paths = {number: os.path.join(found, KEPT.format(iteration=number)) for number in numbers}
    missing = [path for path in paths.values() if not os.path.isfile(path)]
    if missing or not paths:
        what = f"lacks {os.path.basename(missing[0])}" if missing else "kept the best validation alone"
        raise UserError(f"The run in {folder} {what}: train with --keep-best 5, or name several weights.")
    return paths


def _set_of(folder):
    """A checkpoint folder itself, or the newest one of a run folder; UserError if there is none."""
    found = folder if os.path.isfile(os.path.join(folder, STATES)) else newest_checkpoint(folder)
    if found is None:
        raise UserError(
            f"The folder {folder} holds no checkpoint: name the folder of a run, or a file of weights."
        )
    return found
