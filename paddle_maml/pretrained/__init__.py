"""Weights that come with the library, each with a card: NAME.pdparams and NAME.json in this folder.

The card holds the settings, the test result, the command and the SHA-256 of the weights. `python -m paddle_maml.pretrained RUN NAME`
makes both from a finished run.
"""
from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shlex
from pathlib import Path

from .. import checkpoint
from ..errors import UserError
from ..files import write_whole
from ..reporting import REPORT, write_json
from ..settings import Settings, flag, settings_from_dict, settings_from_preset

FOLDER = Path(__file__).parent


def names():
    """The names of the weights that are here."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def find(name):
    """The weights of a name.

    Returns:
        (file, settings, card): its path, the `Settings` it was trained with, and the card, a dict.

    Raises:
        UserError: there is no such name, or the file is not the one that the card describes.
    """
    if name not in names():
        raise UserError(f"There are no pretrained weights {name!r}; there are: {', '.join(names()) or 'none'}.")
    path = FOLDER / f"{name}.pdparams"
    card = _read(FOLDER / f"{name}.json", "settings", "sha256")
    if not path.is_file() or _digest(path.read_bytes()) != card["sha256"]:
        raise UserError(f"{path} is missing or is not the file that its card describes: get it anew.")
    return str(path), settings_from_dict(card["settings"]), card


def add(run_folder, name):
    """Put the best weights of a finished run here, with a card made from its report.

    Raises:
        UserError: the run is not finished, it went on after its report, or the name is none.
    """
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise UserError(f"The name is {name!r}, but must be made of letters, digits, '-' and '.'.")
    report_path = os.path.join(run_folder, REPORT)
    if not os.path.isfile(report_path):
        raise UserError(f"There is no {report_path}: the run has not come to its end.")
    report = _read(report_path, "settings", "iterations", "validation", "test")
    settings = settings_from_dict(report["settings"])
    path, _ = checkpoint.find_weights(run_folder)
    states, _ = checkpoint.read_states(os.path.join(os.path.dirname(path), checkpoint.STATES))
    if (states["iteration"], states["best_iteration"]) != (report["iterations"], report["validation"]["iteration"]):
        raise UserError(f"The run in {run_folder} went on after its report: let it come to its end.")
    with open(path, "rb") as file:
        weights = file.read()
    # Paths and the like are the trainer's, not the weights'.
    neutral = {field.name: field.default for field in dataclasses.fields(Settings) if field.metadata["may_change"]}
    kept = {name: getattr(settings, name) for name in _IN_COMMAND}
    card = {**report, "name": name, "command": command(settings), "sha256": _digest(weights), "settings": {**report["settings"], **neutral, **kept}}
    write_whole(FOLDER / f"{name}.pdparams", weights)
    write_json(FOLDER / f"{name}.json", card)


def command(settings):
    """The command line that trains with these settings: the preset, and what differs from it."""
    preset = settings_from_preset(settings.preset)
    parts = ["python", "train.py", flag("preset"), settings.preset]
    for field in dataclasses.fields(Settings):
        value, usual = getattr(settings, field.name), getattr(preset, field.name)
        if value == usual or (field.metadata["may_change"] and field.name not in _IN_COMMAND):
            continue
        if field.metadata["kind"] is bool:
            parts.append(flag(field.name) if value else flag("no_" + field.name))
        else:
            parts += [flag(field.name), str(value)]
    return shlex.join(parts)


# A resumed run may change them, but the result depends on them.
_IN_COMMAND = ("iterations", "test_episodes")


def _read(path, *names):
    """The dict in a JSON file; UserError if it is damaged or lacks one of the names."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict) or any(name not in content for name in names):
        raise UserError(f"{path} is damaged: get it anew.")
    return content


def _digest(data):
    return hashlib.sha256(data).hexdigest()
