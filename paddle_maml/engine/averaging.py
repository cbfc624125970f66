"""The mean of weights that share a start, which is often better than each of them.

Of several runs that go on from the same weights (Wortsman et al. 2022, "Model soups"), or of the best
validations of one run (Izmailov et al. 2018, "Averaging weights leads to wider optima").
"""

from __future__ import annotations

import os
import shutil

import numpy as np

from ..errors import UserError
from ..files import digest_of, write_together
from . import checkpoint
from .plain_data import read_plain_data
from .provenance import origin_of, together

_PARTIAL = ".average.partial"


def average(runs: list[str], folder: str) -> None:
    """Make a folder with the mean of weights, for --weights and --start-from: best.pdparams, and
    model.pdstates with the settings of the first run, what all were trained on, and which they are.

    Args:
        runs: run folders; of several the best weights, of a single one those that it kept.
        folder: the new folder; it appears when it is whole.

    Raises:
        UserError: the runs did not start from the same weights, are of different networks, or hold statistics
            of a population, which are none of the mean; one run kept no weights; the folder is there already.
    """
    if not runs:
        raise UserError("average takes runs and the folder for their mean: name both.")
    if os.path.exists(folder):
        raise UserError(f"{folder} is there already: choose another folder for the mean.")
    sets = [checkpoint.read_best(run, kept=len(runs) == 1) for run in runs]
    members = {os.path.join(one.path, name): data for one in sets for name, data in one.files.items()}
    starts = {one.states.get("start_sha256") for one in sets}
    if len(runs) > 1 and (len(starts) > 1 or not all(starts)):
        raise UserError(
            "The runs did not start from the same weights, so that their mean is none of a network: average "
            "runs with one --start-from."
        )
    mean = _mean(members)
    origin = together([origin_of(one.settings, one.states) for one in sets])
    partial = os.path.join(os.path.dirname(os.path.abspath(folder)), _PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    os.makedirs(partial)
    try:
        states = {
            "settings": origin.settings.as_dict(),
            "trained_on": origin.trained_on,
            "listing_sha256": origin.listing_sha256,
            "start_sha256": starts.pop() or "",
            "averaged": [digest_of(data) for data in members.values()],
        }
        best = {checkpoint.BEST: checkpoint.file_of(mean)}
        write_together(partial, checkpoint.with_states(best, states))
        os.rename(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _mean(files):
    """The mean of the arrays in files of weights, which are given by their paths, by name."""
    paths = list(files)
    members = [read_plain_data(data, path) for path, data in files.items()]
    for path, arrays in zip(paths, members):
        if not isinstance(arrays, dict):
            raise UserError(f"{path} holds no named weights: take another run.")
        if any(name.startswith("population_") for name in arrays):
            raise UserError(
                f"{path} holds statistics of a population, which are none of the mean: leave it out."
            )
        shapes = {name: getattr(array, "shape", None) for name, array in arrays.items()}
        if shapes != {name: array.shape for name, array in members[0].items()}:
            raise UserError(f"{path} is of another network than {paths[0]}: leave one of them out.")
    return {
        name: np.mean([arrays[name] for arrays in members], axis=0, dtype=np.float64).astype(first.dtype)
        for name, first in members[0].items()
    }
