"""All learners beside each other, from the reports of their runs and evaluations.

`python -m paddle_maml results learners REPORT...` prints the table.
"""

from __future__ import annotations

import os

from ..errors import UserError
from ..files import write_whole
from ..report.pictures import draw_points, png
from ..report.tables import REPORT, TASKS, learners_table
from .results import NUMBER, SUPPORT_TEST, has, read_report, tested_in
from .settings import Settings, settings_from_dict

# What training finds out, and what there is of it for a new task.
_LEARNS = {
    "maml": "where gradient steps begin",
    "anil": "where gradient steps begin",
    "reptile": "where steps of an optimizer begin",
    "prototypical": "an embedding",
    "lstm": "an embedding, and how to read a support set",
    "fine-tuning": "an embedding",
}
# What must be the same for accuracies to be compared.
_PROTOCOL = ("dataset", "split_rule", "split", "k_query", "within_alphabet", "inner_lr_factor")
_RESULT = {"accuracy": NUMBER, "interval": NUMBER}

_EMPTY = {"results": {}, "learns": "", "parameters": None, "training": [], "times": None, "machine": None}


def name_of(settings: Settings) -> str:
    """What a learner is called in the table: its name, and what makes it another one."""
    if settings.learner == "fine-tuning":
        adapted = "" if settings.adapted == "head" else " and body"
        return f"fine-tuning, {settings.head} head{adapted}"
    more = "" if settings.network == "conv4" else f", {settings.network}"
    head = ", head alone" if settings.learner == "maml" and settings.adapted == "head" else ""
    return settings.learner + more + head


def compare(paths: list[str]) -> list[dict]:
    """Read reports, and put what they say of one learner into one row, or into two where it was tested with
    and without the statistics of the query set.

    Args:
        paths: of reports of runs, of cards, of files that eval.py wrote with --json, or of folders that hold
            a report.json.

    Returns:
        A dict for each learner, and for its sight of the query set, in the order of the paths: learner, its
        name; together, whether its answers depend on all of the query set; results, dict from (n_way, k_shot)
        to (accuracy, interval), fractions; learns, in words, and parameters, how many numbers that are, None
        if not known; training, list of (seconds, whether it went on from other weights) of the runs; times,
        as of `timing.time_tasks`, of a 5-way 1-shot task, or None; and machine, where times were measured.

    Raises:
        UserError: a report is missing, damaged, of another protocol than the first, or says of a cell what
            another report does not.
    """
    rows, first, source = {}, None, {}
    for path in {os.path.realpath(path): path for path in paths}.values():
        path = os.path.join(path, REPORT) if os.path.isdir(path) else path
        report = read_report(path)
        settings, main = settings_from_dict(report["settings"]), tested_in(report)
        also = report.get(SUPPORT_TEST)
        if also is not None and not has(also, {**dict.fromkeys(("n_way", "k_shot"), int), **_RESULT}):
            raise UserError(f"{path} is damaged: get it anew.")
        for test in (main, also) if also else (main,):
            first = first or (path, test)
            _require_comparable(path, test, *first)
            # Without a choice of statistics there is a note where the query set is seen together.
            together = test["statistics"] == "query" if "statistics" in test else "note" in test
            key = name_of(settings), together
            row = rows.setdefault(key, {**_EMPTY, "learner": key[0], "together": together})
            row["learns"] = _LEARNS.get(settings.learner, "")
            task, result = (test["n_way"], test["k_shot"]), (test["accuracy"], test["interval"])
            if source.setdefault((key, task), (path, result))[1] != result:
                raise UserError(
                    f"{path} and {source[key, task][0]} have different results of {key[0]} for {task[0]}-way "
                    f"{task[1]}-shot: leave one of them out."
                )
            row["results"] = {**row["results"], task: result}
            if test is not main:
                continue
            if has(report, {"training_seconds": NUMBER}):
                training = (report["training_seconds"], report.get("start_sha256") is not None)
                row["training"] = list(dict.fromkeys([*row["training"], training]))
            if has(report, {"parameters": int}):
                row["parameters"] = max(row["parameters"] or 0, report["parameters"])
            if task == TASKS[0] and has(report.get("times"), {"adapt_s": NUMBER, "query_s": NUMBER}):
                row["times"], row["machine"] = report["times"], _machine(report.get("environment", {}))
    return list(rows.values())


def _require_comparable(path, test, first_path, first):
    if "score_name" in test:
        raise UserError(f"{path} is of a regression, which has no accuracy: leave it out.")
    if "ensemble" in test:
        raise UserError(f"{path} is of an ensemble, and not of one network: leave it out.")
    for name in _PROTOCOL:
        if test.get(name) != first.get(name):
            raise UserError(
                f"{path} cannot be compared with {first_path}: {name} is {test.get(name)}, and there "
                f"{first.get(name)}."
            )


def _machine(environment):
    names = ("processor", "cores", "device", "paddle")
    processor, count, device, version = (environment.get(name, "?") for name in names)
    return f"{processor}, {count} cores, device {device}, Paddle {version}"


def table(paths: list[str], picture: str | None = None) -> str:
    """The reports as a Markdown table of learners, see `learners_table`.

    Args:
        paths: as of `compare`.
        picture: also draw the accuracy of 5-way 1-shot against the time to adapt, to this PNG.

    Raises:
        UserError: as `compare`; or there is nothing to draw.
    """
    rows = compare(paths)
    if picture:
        points = [
            (
                row["learner"] + (" *" if row["together"] else ""),
                1000 * row["times"]["adapt_s"],
                100 * accuracy,
            )
            for row in rows
            if row["times"]
            for accuracy, _ in [row["results"][TASKS[0]]]
        ]
        if not points:
            raise UserError("No report has times: write them with eval.py --time --json, for 5-way 1-shot.")
        titles = "time to adapt, ms", "accuracy, %, 5-way 1-shot   (* sees the query set together)"
        write_whole(picture, png(draw_points(points, *titles)))
    return learners_table(rows, sorted({row["machine"] for row in rows if row["machine"]}))
