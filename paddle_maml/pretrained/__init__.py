"""Weights that come with the library, each with a card: NAME.pdparams and NAME.json in this folder.

The card is the run's report (settings, test result, command) with the SHA-256 of the weights. `python -m
paddle_maml.pretrained RUN NAME` makes both from a finished run.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..engine import checkpoint
from ..engine.results import finished_report, read_report
from ..engine.settings import NOTHING, settings_from_dict
from ..errors import UserError
from ..files import digest, write_together
from ..report.log import json_file

FOLDER = Path(__file__).parent


def names():
    """The names of the weights that are here."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def look_up(name):
    """The weights that come with the library under a name.

    Returns:
        (file, origin, card): its path, the `checkpoint.Origin` of the weights, and the card, a dict.

    Raises:
        UserError: there is no such name, or the file is not the one that the card describes.
    """
    if name not in names():
        raise UserError(
            f"There are no pretrained weights {name!r}; there are: {', '.join(names()) or 'none'}."
        )
    path = FOLDER / f"{name}.pdparams"
    card = read_report(FOLDER / f"{name}.json", "sha256")
    if not path.is_file() or digest(path) != card["sha256"]:
        raise UserError(f"{path} is missing or is not the file that its card describes: get it anew.")
    return str(path), checkpoint.origin_of(settings_from_dict(card["settings"]), card), card


def find_weights(path_or_name):
    """The weights that a name or, where there is no such name, a path stands for: (file, origin) as of
    `checkpoint.find_weights`.

    Raises:
        UserError: there are none.
    """
    if path_or_name in names():
        return look_up(path_or_name)[:2]
    if not os.path.exists(path_or_name):
        raise UserError(
            f"There is no file or folder {path_or_name}, and no pretrained weights of that name; there are: "
            f"{', '.join(names()) or 'none'}."
        )
    return checkpoint.find_weights(path_or_name)


def add(run_folder, name):
    """Put the best weights of a finished run here, with a card made from its report.

    Raises:
        UserError: the run is not finished, it went on after its report, or the name is taken or has other
            characters than letters, digits, '-' and '.', or stands for no weights.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]*", name) or name == NOTHING:
        raise UserError(
            f"The name is {name!r}, but must be made of letters, digits, '-' and '.', and not be {NOTHING!r}."
        )
    taken = next(
        (path for path in (FOLDER / f"{name}.pdparams", FOLDER / f"{name}.json") if path.exists()), None
    )
    if taken:
        raise UserError(
            f"The name is {name!r}, but {taken} is there already: choose another name, or remove what "
            "there is of the old one."
        )
    report, path = finished_report(run_folder)
    card = json_file({"name": name, "sha256": digest(path), **report})
    write_together(FOLDER, {f"{name}.pdparams": Path(path).read_bytes(), f"{name}.json": card})
