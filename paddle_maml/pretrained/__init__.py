"""Weights that come with the library, each with a card: NAME.pdparams and NAME.json in this folder.

The card is the run's report (settings, test result, command) with the SHA-256 of the weights. `python -m
paddle_maml pretrained add RUN NAME` makes both from a finished run.
"""

from __future__ import annotations

import re
from pathlib import Path

from ..engine import provenance
from ..engine.provenance import look_up, names
from ..engine.results import finished_report
from ..engine.settings import NOTHING
from ..errors import UserError
from ..files import digest, write_together
from ..report.tables import json_file

__all__ = ["add", "look_up", "names"]


def add(run_folder: str, name: str) -> Path:
    """Put the best weights of a finished run here, with a card made from its report; returns their path.

    Raises:
        UserError: the run is not finished, it went on after its report, or the name is taken or has other
            characters than letters, digits, '-' and '.', or stands for no weights.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]*", name) or name == NOTHING:
        raise UserError(
            f"The name is {name!r}, but must be made of letters, digits, '-' and '.', and not be {NOTHING!r}."
        )
    taken = next(
        (
            path
            for path in (provenance.SHELF / f"{name}.pdparams", provenance.SHELF / f"{name}.json")
            if path.exists()
        ),
        None,
    )
    if taken:
        raise UserError(
            f"The name is {name!r}, but {taken} is there already: choose another name, or remove what there "
            "is of the old one."
        )
    report, path = finished_report(run_folder)
    card = json_file({"name": name, "sha256": digest(path), **report})
    write_together(provenance.SHELF, {f"{name}.pdparams": Path(path).read_bytes(), f"{name}.json": card})
    return provenance.SHELF / f"{name}.pdparams"
