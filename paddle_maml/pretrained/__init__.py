"""Weights that come with the library, each with a card: NAME.pdparams and NAME.json in this folder.

The card holds the settings, the test result, the command and the SHA-256 of the weights. `python -m paddle_maml.pretrained RUN NAME`
makes both from a finished run.
"""
from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shlex
from pathlib import Path

from .. import checkpoint
from ..errors import UserError
from ..files import write_whole
from ..reporting import REPORT, write_json
from ..settings import PRESETS, Settings, flag, settings_from_dict, settings_from_preset

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
    card = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    path = FOLDER / f"{name}.pdparams"
    if not path.is_file() or _digest(path.read_bytes()) != card["sha256"]:
        raise UserError(f"{path} is missing or is not the file that its card describes: get it anew.")
    return str(path), settings_from_dict(card["settings"]), card


def add(run_folder, name):
    """Put the best weights of a finished run here, with a card made from its report.

    Raises:
        UserError: the run is not finished or lacks a part.
    """
    report_path = os.path.join(run_folder, REPORT)
    if not os.path.isfile(report_path):
        raise UserError(f"There is no {report_path}: the run has not come to its end.")
    with open(report_path, encoding="utf-8") as file:
        report = json.load(file)
    settings = settings_from_dict(report["settings"])
    path, _ = checkpoint.find_weights(run_folder)
    with open(path, "rb") as file:
        weights = file.read()
    # Paths and the like are the trainer's, not the weights'.
    neutral = {field.name: field.default for field in dataclasses.fields(Settings) if field.metadata["may_change"]}
    kept = {"iterations": settings.iterations, "test_episodes": settings.test_episodes}
    card = {**report, "name": name, "command": command(settings), "sha256": _digest(weights), "settings": {**report["settings"], **neutral, **kept}}
    write_whole(FOLDER / f"{name}.pdparams", weights)
    write_json(FOLDER / f"{name}.json", card)


def command(settings):
    """The command line that trains with these settings: the preset, and what differs from it."""
    preset = settings_from_preset(settings.preset) if settings.preset in PRESETS else Settings()
    parts = ["python", "train.py", flag("preset"), settings.preset]
    for field in dataclasses.fields(Settings):
        value, usual = getattr(settings, field.name), getattr(preset, field.name)
        if value == usual or (field.metadata["may_change"] and field.name != "iterations"):
            continue
        if field.metadata["kind"] is bool:
            parts.append(flag(field.name) if value else flag("no_" + field.name))
        else:
            parts += [flag(field.name), str(value)]
    return shlex.join(parts)


def _digest(data):
    return hashlib.sha256(data).hexdigest()
