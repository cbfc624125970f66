"""What finished runs leave for others to check: report, log and curve, small enough for the repository, and a
table of them.

`python -m paddle_maml results keep RUN FOLDER` copies a run's; `python -m paddle_maml results table
FOLDER...` prints a line for each.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import write_together
from ..report.log import METRICS, metrics_file, read_metrics
from ..report.tables import CURVE, REPORT, json_file, results_table, score_key
from . import checkpoint
from .settings import SECOND_ORDER, settings_from_dict

# Rows of a log that is kept: more do not show in its curve.
MOST_ROWS = 400

NUMBER = (int, float)

# In the card of weights: a second test, with batch norm's statistics of the support set.
SUPPORT_TEST = "test_support_statistics"


def finished_report(run_folder: str) -> tuple[dict, bytes]:
    """The report of a finished run, without what belongs to its machine, and with the command that repeats
    the run.

    Returns:
        (report, weights): a dict as in report.json with "command" added, and the file of the weights that
        were tested.

    Raises:
        UserError: the run has not come to its end, or went on after its report.
    """
    path = os.path.join(run_folder, REPORT)
    if not os.path.isfile(path):
        raise UserError(f"There is no {path}: the run has not come to its end.")
    report = read_report(path, iterations=int, validation=dict)
    best = checkpoint.read_best(run_folder)
    reported = report["iterations"], report["validation"].get("iteration")
    if (best.states.get("iteration"), best.states.get("best_iteration")) != reported:
        raise UserError(f"The run in {run_folder} went on after its report: let it come to its end.")
    settings = settings_from_dict(report["settings"])
    return {**report, "settings": settings.portable().as_dict(), "command": settings.command()}, best.files[
        checkpoint.BEST
    ]


def read_report(path: str | Path, **types: type | tuple[type, ...]) -> dict:
    """The dict in a JSON file of a run or of eval.py: its settings, its test and what else is wanted.

    Args:
        types: by name, of what is wanted.
    Raises:
        UserError: there is none, or it is damaged.
    """
    if not os.path.isfile(path):
        raise UserError(f"There is no {path}: name the folder of a finished run or of what is kept of one.")
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = None
    tested = {"interval": NUMBER, "episodes": int, "n_way": int, "k_shot": int}
    test = tested_in(content) if isinstance(content, dict) else None
    if (
        not has(content, {"settings": dict, **types})
        or not isinstance(test, dict)
        or not has(test, {**tested, score_key(test): NUMBER})
    ):
        raise UserError(f"{path} is damaged: get it anew.")
    try:
        settings_from_dict(content["settings"])
    except UserError as error:
        why = str(error).rstrip(".")
        raise UserError(f"{path} is damaged, or of another version of this library ({why}).") from error
    return content


def tested_in(report: dict) -> dict:
    """What a run's report has of its test, or a report of eval.py of its evaluation."""
    return report.get("test", report.get("evaluation"))


def has(content: Any, types: dict) -> bool:
    """Whether a dict has values of these types, and numbers that arithmetic takes: JSON has NaN, and whole
    numbers that no float holds."""
    return isinstance(content, dict) and all(
        isinstance(content.get(name), kind) and (kind not in (int, NUMBER) or abs(content[name]) < 1e15)
        for name, kind in types.items()
    )


def keep(run_folder: str, folder: str) -> None:
    """Copy the report, the log and the curve of a finished run to a folder, which is made if needed. Of a
    long log every nth row is kept, and those of validations.

    Raises:
        UserError: as `finished_report`; the log or the curve is missing, or the folder is the run's own.
    """
    if not folder:
        raise UserError("The folder to keep the run in is '': name one.")
    if os.path.realpath(run_folder) == os.path.realpath(folder):
        raise UserError(
            f"The run's own folder {folder} is where its whole log is: name another one to keep the short "
            "one in."
        )
    report, _ = finished_report(run_folder)
    for name in (METRICS, CURVE):
        if not os.path.isfile(os.path.join(run_folder, name)):
            raise UserError(
                f"There is no {os.path.join(run_folder, name)}: resume the run, which writes what is "
                "missing of its end."
            )
    rows = read_metrics(os.path.join(run_folder, METRICS))
    distance = -(-len(rows) // MOST_ROWS)
    shown = [row for number, row in enumerate(rows, 1) if row["val_loss"] or number % distance == 0]
    curve = Path(run_folder, CURVE).read_bytes()
    write_together(folder, {METRICS: metrics_file(shown), CURVE: curve, REPORT: json_file(report)})


def table(folders: list[str]) -> str:
    """The reports in these folders as a Markdown table, see `results_table`, or the files that eval.py writes
    with --json. A folder that is named twice counts once.

    Raises:
        UserError: a report is missing or damaged.
    """
    runs = []
    for folder in {os.path.realpath(folder): folder for folder in folders}.values():
        if os.path.isfile(folder):
            runs.append(_evaluation(folder))
            continue
        wanted = {"iterations": int, "seed": int, "training_seconds": NUMBER}
        report = read_report(os.path.join(folder, REPORT), **wanted)
        settings = settings_from_dict(report["settings"])
        without_seed = dataclasses.replace(settings.portable(), seed=0, output=None)
        name = os.path.basename(os.path.normpath(folder))
        runs.append((name, report, _order(settings), settings.command(), without_seed.command()))
    return results_table(runs)


def _evaluation(path):
    """The result of eval.py in a file, as `results_table` takes it."""
    report = read_report(path, command=str)
    report = {"test": tested_in(report), "seed": report["settings"]["seed"], **report}
    order = _order(settings_from_dict(report["settings"]))
    return Path(path).stem, report, order, report["command"], report["command"]


def _order(settings):
    return settings.order if settings.learner in SECOND_ORDER else ""
