"""Weights that come with the library, each with a card: NAME.pdparams and NAME.json in this folder.

The card is the run's report (settings, test result, command) with the SHA-256 of the weights. `python -m
paddle_maml pretrained add RUN NAME` makes both from a finished run, and `pretrained measure NAME` adds the
accuracy with the batch statistics of the support set.
"""

from __future__ import annotations

import re
from pathlib import Path

import paddle

from ..engine import assembly, provenance
from ..engine.evaluation import choose_statistics, evaluate
from ..engine.provenance import look_up, names
from ..engine.results import SUPPORT_TEST, finished_report
from ..engine.settings import NOTHING
from ..engine.weights import load_weights
from ..errors import UserError
from ..files import digest_of, write_together, write_whole
from ..report.tables import json_file

__all__ = ["add", "look_up", "measure", "names"]


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
    report, weights = finished_report(run_folder)
    card = json_file({"name": name, "sha256": digest_of(weights), **report})
    write_together(provenance.SHELF, {f"{name}.pdparams": weights, f"{name}.json": card})
    return provenance.SHELF / f"{name}.pdparams"


def measure(name: str) -> dict:
    """Test weights of this folder with the batch statistics of the support set, on the episodes of their
    card's test, and write the result to the card, which is returned.

    Raises:
        UserError: there are no such weights, or no images to test them on.
    """
    weights, origin, card = look_up(name)
    settings = origin.settings
    parts, rule = assembly.load_images(settings)
    learner = assembly.make_learner(settings, parts["test"])
    load_weights(learner, weights)
    episodes = assembly.evaluation_episodes(settings, parts["test"])
    choose_statistics(learner, "support")
    result = evaluate(learner, episodes, card["test"]["episodes"], settings.steps_at_test)
    result = assembly.describe(result, settings, parts["test"], rule, "test")
    of_the_test = list(card).index("test") + 1
    entries = [entry for entry in card.items() if entry[0] != SUPPORT_TEST]
    entries.insert(of_the_test, (SUPPORT_TEST, {**result, "paddle": paddle.__version__}))
    card = dict(entries)
    write_whole(provenance.SHELF / f"{name}.json", json_file(card))
    return card
