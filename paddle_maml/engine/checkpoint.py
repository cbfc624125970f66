"""Checkpoint sets: the state of a run on disk, written whole or not at all."""

from __future__ import annotations

import io
import itertools
import os
import re
import shutil
import typing

from .. import files
from ..errors import UserError
from .plain_data import read_bytes, read_plain_data
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
    the old set or the new one. The states end with a digest of themselves and hold those of the other files:
    no bit of a set can change unseen.

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
    more = {} if average is None else {AVERAGE: average}
    more.update({KEPT.format(iteration=number): arrays for number, arrays in (kept or {}).items()})
    contents = {WEIGHTS: weights, BEST: best, OPTIMIZER: optimizer, **more}
    contents = with_states({name: file_of(content) for name, content in contents.items()}, states)
    partial, before = os.path.join(run_folder, _PARTIAL), newest_checkpoint(run_folder)
    shutil.rmtree(partial, ignore_errors=True)
    os.mkdir(partial)
    try:
        new = {name: data for name, data in contents.items() if not _linked(name, data, before, partial)}
        files.write_together(partial, new)
        final = _free_name(run_folder, iteration)
        os.rename(partial, final)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    files.sync(run_folder)
    remove_leftovers(run_folder)
    return final


def file_of(content: dict) -> bytes:
    """The file that paddle.save makes of a dict."""
    import paddle  # here, because reading does without

    file = io.BytesIO()
    paddle.save(content, file)
    return file.getvalue()


def with_states(contents: dict[str, bytes], states: dict) -> dict[str, bytes]:
    """Files by name, and that of the states with all their digests."""
    digests = {name: files.digest_of(data) for name, data in contents.items()}
    return {**contents, STATES: files.sealed(file_of({**states, "sha256": digests}))}


def _linked(name, data, before, partial):
    """Whether the file of the set before could be given a second name; it cannot where it is another, and on
    some disks."""
    if not before or not name.startswith("kept-"):
        return False
    source, path = (os.path.join(folder, name) for folder in (before, partial))
    try:
        if files.read_whole(source, len(data)) != data:
            return False
        os.link(source, path)
    except (OSError, ValueError):
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
        except OSError:
            if os.path.lexists(path):  # a file
                continue
            return _sets(run_folder)  # replaced in this moment, and the new one may not be in the list
        missing = [file for file in FILES if file not in content]
        if content and all(map(belongs, content)):
            (damaged if missing else sets).append(((int(match[1]), int(match[2] or 0)), path, *missing[:1]))
    return [path for _, path in sorted(sets)], [(path, missing) for _, path, missing in sorted(damaged)]


def _free_name(run_folder, iteration):
    # The same iteration is saved again when an interrupted validation was caught up; the older set must stay
    # until the newer is complete.
    path = os.path.join(run_folder, f"checkpoint-{iteration}")
    names = (path if tries == 0 else f"{path}.{tries}" for tries in itertools.count())
    return next(name for name in names if not os.path.exists(name))


class Checkpoint(typing.NamedTuple):
    """What was read of a checkpoint set: its path, its states (a dict of plain values), the `Settings` of its
    run, and the bytes of some of its files by name."""

    path: str
    states: dict
    settings: Settings
    files: dict[str, bytes]


def read_set(path: str, *names: str, kept: bool = False) -> Checkpoint:
    """Read the states of a checkpoint set and the named ones of its other files.

    Args:
        path: of the set.
        names: of files.
        kept: also those of the best validations that the run kept, the best first.
    Raises:
        UserError: one of them is not what was written there. Sets of before 2026-11 have no digest of their
            states.
    """
    states_file = os.path.join(path, STATES)
    states = read_plain_data(read_bytes(states_file), states_file)
    inside = [states.get(name) for name in ("settings", "sha256")] if isinstance(states, dict) else [None]
    if not all(isinstance(value, dict) for value in inside):
        raise UserError(
            f"{states_file} does not hold the state of a run: name a run folder or a checkpoint folder."
        )
    names += _kept_in(states) if kept else ()
    contents = {name: read_bytes(os.path.join(path, name)) for name in names}
    for name, data in contents.items():
        if files.digest_of(data) != states["sha256"].get(name):
            raise UserError(
                f"{os.path.join(path, name)} is damaged: it is not what was written there; take another "
                "copy, or start again in another folder."
            )
    return Checkpoint(path, states, settings_from_dict(states["settings"]), contents)


def _kept_in(states):
    kept = states.get("kept")
    sound = isinstance(kept, list) and all(
        isinstance(entry, dict) and type(entry.get("iteration")) is int for entry in kept
    )
    return tuple(KEPT.format(iteration=entry["iteration"]) for entry in kept) if sound else ()


def belongs(name: str) -> bool:
    """Whether a file of a checkpoint set may have a name."""
    return name in FILES or bool(_MORE.fullmatch(name))


def read_newest(folder: str, *names: str, kept: bool = False) -> Checkpoint | None:
    """As `read_set`, of a run folder's newest checkpoint, None where there is none, or of a checkpoint
    folder. The run may be in training: where a set was replaced while it was read, the next one is."""
    while True:
        before = os.listdir(folder) if os.path.isdir(folder) else []
        try:
            path = folder if STATES in before else newest_checkpoint(folder)
            return read_set(path, *names, kept=kept) if path else None
        except UserError:
            if not os.path.isdir(folder) or os.listdir(folder) == before:
                raise


def read_best(folder: str, kept: bool = False) -> Checkpoint:
    """As `read_newest`, with the best weights, or those of all validations that were kept; UserError if there
    are none."""
    found = read_newest(folder, kept=True) if kept else read_newest(folder, BEST)
    if found is None:
        raise UserError(
            f"The folder {folder} holds no checkpoint: name the folder of a run, or a file of weights."
        )
    if not found.files:
        raise UserError(
            f"The run in {folder} kept the best validation alone: train with --keep-best 5, or name several "
            "weights."
        )
    return found
