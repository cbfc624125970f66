"""What runs and evaluations found, as tables, JSON and Markdown: plain values in, text out."""

from __future__ import annotations

import csv
import io
import json
import statistics

from ..files import write_whole

REPORT, CURVE, ANALYSIS = "report.json", "curve.png", "analysis.json"

# The code of Finn et al. (2017) turns the classes of a test episode too, each by quarter turns drawn for it.
ROTATED, ONE_ALPHABET = "classes turned at random, as Finn et al. test", "classes of one alphabet"
NO_MISTAKE = "no query image was taken for another class"


def json_file(report: dict) -> bytes:
    """The bytes of a JSON file that holds a dict of plain values."""
    return (json.dumps(report, indent=2, allow_nan=False) + "\n").encode()


def write_json(path: str, report: dict) -> None:
    """Write a dict of plain values as JSON, whole or not at all."""
    write_whole(path, json_file(report))


def score_key(result: dict) -> str:
    """Under which key the result of `evaluate` has its score."""
    return "score" if "score_name" in result else "accuracy"


def score_text(result: dict, value: float) -> str:
    """A score of the result of `evaluate`, or an interval: accuracies in per cent."""
    return f"{value:.4f}" if "score_name" in result else f"{value:.2%}"


def evaluation_table(result: dict) -> str:
    """The result of `evaluate` as lines of text: the score after each inner step where it is known, and the
    final mean with its interval."""
    key, name = score_key(result), result.get("score_name", "accuracy")
    by_step = result["loss_per_step"] if len(result["loss_per_step"]) > 1 else []
    lines = [f"inner steps   {name:<19} query loss"] if by_step else []
    for step, loss in enumerate(by_step):
        score, interval = (score_text(result, result[f"{of}_per_step"][step]) for of in (key, "interval"))
        lines.append(f"{step:11d}   {score:>7} +- {interval:>6}   {loss:10.4f}")
    mean = f"{score_text(result, result[key])} +- {score_text(result, result['interval'])}"
    if key == "accuracy":
        task = f"{result['n_way']}-way {result['k_shot']}-shot, {result['k_query']} query images a class"
    else:
        task = f"{result['k_shot']} points, {result['k_query']} query points, {name}"
    if "within_alphabet" in result:
        task += ", classes of one alphabet"
    if "ensemble" in result:
        task += f", {_ensemble(result)}"
    lines.append(
        f"{result['dataset']}, {result['split']} split, {task}: {mean} "
        f"(95 % interval over {result['episodes']} episodes)"
    )
    return "\n".join(lines + (["Note: " + result["note"]] if "note" in result else []))


def prediction_table(rows: list[dict]) -> str:
    """The rows of `inference.prediction.Prediction` as lines of text."""
    columns = ["image", "label", "probability"] + (["truth"] if "truth" in rows[0] else [])
    cells = [[f"{row[name]:.3f}" if name == "probability" else row[name] for name in columns] for row in rows]
    widths = [max(len(row[place]) for row in [columns, *cells]) for place in range(len(columns))]
    return "\n".join(
        "   ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
        for row in [columns, *cells]
    )


def prediction_csv(rows: list[dict]) -> bytes:
    """The same as a CSV file: image, label, probability, where it is known the truth, and a column with the
    probability of each class."""
    classes = [f"p({name})" for name in rows[0]["probabilities"]]
    own = [name for name in rows[0] if name != "probabilities"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(own + classes)
    writer.writerows([*(row[name] for name in own), *row["probabilities"].values()] for row in rows)
    return text.getvalue().encode("utf-8", "backslashreplace")


def times_line(times: dict) -> str:
    """What `time_tasks` measured, as a line of text."""
    return (
        f"Time: {1000 * times['adapt_s']:.2f} ms to adapt to a task, {1000 * times['query_s']:.3f} ms a "
        f"query input (medians of {times['repeat']} tasks)."
    )


def _ensemble(result):
    return f"ensemble of {len(result['ensemble'])}"


def analysis_table(analysis: dict) -> str:
    """The analysis as lines of text."""
    lines = [
        f"{analysis['n_way']}-way {analysis['k_shot']}-shot, {analysis['k_query']} query images a class, "
        f"{analysis['episodes']} episodes, accuracy with 95 % interval; unless the line says otherwise: "
        f"inner steps: {analysis['inner_steps']}, batch statistics of the whole query set, classes of the "
        "tested part",
        "",
    ]

    def add(label, result):
        said = result.get("not_measured") or f"{result['accuracy']:7.2%} +- {result['interval']:.2%}"
        lines.append(f"{label:62s} {said}")

    for row in analysis["accuracy_by_batch_statistics"]:
        add("batch statistics of " + row["statistics"], row)
    add(ROTATED, analysis["accuracy_of_rotated_classes"])
    add(ONE_ALPHABET, analysis["accuracy_within_alphabets"])
    for row in analysis["accuracy_by_inner_steps"]:
        add(f"inner steps: {row['steps']}", row)
    for row in analysis["accuracy_by_rate_factor"]:
        add(f"inner rates times {row['factor']:g}, validation classes", row)
    lines += [""] + ([confusion(pair) for pair in analysis["confused"]] or [NO_MISTAKE])
    return "\n".join(lines)


def confusion(pair: dict) -> str:
    """A pair of classes of an analysis, as a sentence."""
    return f"{pair['class']} was taken for {pair['taken_for']}, {pair['times']} of {pair['of']} times"


def results_table(runs: list[tuple]) -> str:
    """The reports of runs as a Markdown table, and a line for each group of runs that differ in their seeds
    alone: the mean of their accuracies, and the spread, which is the sample standard deviation.

    Args:
        runs: list of (name, report, order, command, command without the seed). An ensemble's score is called
            that.
    """
    columns = ("run", "test accuracy, %", "episodes", "order", "meta-iterations", "seed", "hours", "command")
    lines, groups = [_row(columns), "| --- " * len(columns) + "|"], {}
    for name, report, order, command, without_seed in runs:
        test, seconds = report["test"], report.get("training_seconds")  # an evaluation has none
        hours = "" if seconds is None else f"{seconds / 3600:.1f}"
        score, interval = test[score_key(test)], test["interval"]
        accuracy = f"{100 * score:.2f} ± {100 * interval:.2f}"
        if "score_name" in test:
            accuracy = f"{score:.3f} ± {interval:.3f}, {test['score_name']}"
        if "ensemble" in test:
            accuracy += f", {_ensemble(test)}"
        work = (test["episodes"], order, report.get("iterations", ""), report["seed"])
        lines.append(_row([name, accuracy, *work, hours, f"`{command}`"]))
        if "score_name" not in test and seconds is not None:
            groups.setdefault((without_seed, order), []).append((report["seed"], 100 * score))
    for (command, order), group in groups.items():
        seeds, accuracies = zip(*sorted(group))
        if len(set(seeds)) == len(group) > 1:  # a run beside a copy of it says nothing of seeds
            spread = f"mean {statistics.mean(accuracies):.2f}, spread {statistics.stdev(accuracies):.2f}"
            seeds = ", ".join(map(str, seeds))
            lines.append(_row([f"{len(group)} runs", spread, "", order, "", seeds, "", f"`{command}`"]))
    return "\n".join(lines)


TASKS = ((5, 1), (5, 5), (20, 1), (20, 5))  # (n_way, k_shot) of the columns of `learners_table`


def learners_table(rows: list[dict], times_of: list[str]) -> str:
    """Learners beside each other as a Markdown table, and a line on what the times were measured with.

    Args:
        rows: as `engine.comparison.compare` returns them.
        times_of: the machines.
    """
    columns = ["learner", "sees the query set together", *(f"{n}-way {k}-shot" for n, k in TASKS)]
    columns += ["learns", "training, hours", "adapting, ms", "a query image, ms"]
    lines = [_row(columns), "| --- " * len(columns) + "|"]
    for row in rows:
        accuracies, times = [""] * len(TASKS), ["", ""]
        for task, (accuracy, interval) in row["results"].items():
            if task in TASKS:
                accuracies[TASKS.index(task)] = f"{100 * accuracy:.2f} ± {100 * interval:.2f}"
        if row["times"]:
            times = [f"{1000 * row['times']['adapt_s']:.1f}", f"{1000 * row['times']['query_s']:.2f}"]
        learns = row["learns"] + (f", {row['parameters']:,} numbers" if row["parameters"] else "")
        hours = [f"{seconds / 3600:.1f}{'+' * further}" for seconds, further in row["training"]]
        together = "yes" if row["together"] else "no"
        lines.append(_row([row["learner"], together, *accuracies, learns, " / ".join(hours), *times]))
    said = ["Test accuracy in per cent with 95 % intervals over episodes."]
    if any(further for row in rows for _, further in row["training"]):
        said.append("+: after other weights were trained, from which the training went on.")
    if times_of:
        said.append("Times: medians over 5-way 1-shot tasks, one at a time, on " + "; ".join(times_of) + ".")
    return "\n".join([*lines, "", " ".join(said)])


def _row(cells):
    return "".join(f"| {cell} " if cell != "" else "| " for cell in cells) + "|"
