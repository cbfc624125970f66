"""What one accuracy leaves out: what batch norm was allowed to see, how many inner steps of which rate, how alike the classes were, and
what was mistaken for what."""
from __future__ import annotations

import contextlib
import dataclasses
import os

import numpy as np

from .episodes import EpisodeBuilder, meta_batch
from .errors import UserError
from .evaluation import evaluate, mean_and_interval
from .pictures import draw_matrix, draw_sheet
from .reporting import write_json

INNER_STEPS = 10
RATE_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
PAIRS, WORST = 10, 6  # classes confused most often, and episodes, that are shown
BATCH = 16  # episodes at a time; it changes memory only

BATCH_NORM = {"query": "the whole query set (published protocol)", "one": "support set and one query image", "support": "support set alone"}
ANALYSIS, CONFUSION, WORST_EPISODES = "analysis.json", "confusion.png", "worst.png"


@dataclasses.dataclass
class Predictions:
    """What was said of the query images of episodes 0, 1, ...: labels (episodes, N), and the right ones (N,)."""

    builder: EpisodeBuilder
    said: np.ndarray
    right: np.ndarray

    @property
    def accuracies(self):
        """Of each episode."""
        return (self.said == self.right).mean(axis=1)


def predict_episodes(learner, builder, episodes, steps, statistics="query"):
    """`Predictions` of a learner for episodes 0 .. episodes - 1, see `MetaLearner.predict`."""
    said = []
    for start in range(0, episodes, BATCH):
        x_spt, y_spt, x_qry, y_qry = meta_batch(builder, range(start, min(start + BATCH, episodes)))
        said.append(learner.predict(x_spt, y_spt, x_qry, steps, statistics).argmax(axis=-1))
    return Predictions(builder, np.concatenate(said), y_qry[0])


def analyse(learner, settings, images, val_images, announce):
    """Measure all of it.

    Args:
        learner: a `MetaLearner` with its weights.
        settings: `Settings`: the episodes' shape and number (test_episodes), the inner steps of testing, the seed.
        images: `ImageSet` of the part to test on.
        val_images: that of validation, where inner rates are compared.
        announce: takes a line before each measurement.

    Returns:
        (analysis, predictions): a dict of plain values, and the `Predictions` of the published protocol.
    """
    def episodes_of(images, **options):
        return EpisodeBuilder(images, settings.n_way, settings.k_shot, settings.test_k_query, seed=settings.seed, **options)

    episodes, steps, builder = settings.test_episodes, settings.steps_at_test, episodes_of(images)
    analysis = {"episodes": episodes, "n_way": settings.n_way, "k_shot": settings.k_shot, "k_query": settings.test_k_query,
                "inner_steps": steps, "inner_lr": settings.inner_lr, "seed": settings.seed, "batch_norm": [], "inner_rates": []}
    predictions = None
    for statistics, meaning in BATCH_NORM.items():
        announce(f"batch norm knows {meaning}")
        result = predict_episodes(learner, builder, episodes, steps, statistics)
        predictions = predictions or result
        analysis["batch_norm"].append({"knows": meaning, **_summary(result.accuracies)})
    announce("classes of one alphabet")
    try:
        alphabets = episodes_of(images, within_alphabet=True)
        analysis["within_alphabet"] = _summary(predict_episodes(learner, alphabets, episodes, steps).accuracies)
    except UserError as error:
        analysis["within_alphabet"] = {"not_measured": str(error)}
    announce(f"0 to {INNER_STEPS} inner steps")
    result = evaluate(learner, builder, episodes, INNER_STEPS)
    analysis["inner_steps_table"] = [{"steps": step, "accuracy": accuracy, "interval": interval} for step, (accuracy, interval)
                                     in enumerate(zip(result["accuracy_per_step"], result["interval_per_step"]))]
    for factor in RATE_FACTORS:
        announce(f"inner rates times {factor:g}, validation classes")
        with _inner_rates(learner, factor):
            result = predict_episodes(learner, episodes_of(val_images), episodes, steps)
        analysis["inner_rates"].append({"factor": factor, **_summary(result.accuracies)})
    analysis["confused"] = _confused_pairs(predictions)
    worst = np.argsort(predictions.accuracies, kind="stable")[:WORST]
    analysis["worst_episodes"] = [{"episode": int(index), "accuracy": float(predictions.accuracies[index])} for index in worst]
    return analysis, predictions


def write_analysis(folder, report, predictions):
    """Write analysis.json, confusion.png and worst.png into a folder, which is made if it is missing."""
    os.makedirs(folder, exist_ok=True)
    rates, groups = _confusion_rates(predictions)
    draw_matrix(rates, groups, os.path.join(folder, CONFUSION))
    draw_sheet(_worst_lines(predictions, [entry["episode"] for entry in report["analysis"]["worst_episodes"]]),
               os.path.join(folder, WORST_EPISODES))
    write_json(os.path.join(folder, ANALYSIS), report)


def analysis_table(analysis):
    """The analysis as lines of text."""
    lines = [f"{analysis['n_way']}-way {analysis['k_shot']}-shot, {analysis['k_query']} query images a class, {analysis['episodes']} episodes, "
             "accuracy with 95 % interval; unless the line says otherwise: "
             f"{analysis['inner_steps']} inner steps, batch norm over the whole query set, classes of the tested part", ""]

    def add(label, result):
        said = result.get("not_measured") or f"{result['accuracy']:7.2%} +- {result['interval']:.2%}"
        lines.append(f"{label:56s} {said}")

    for row in analysis["batch_norm"]:
        add("batch norm knows " + row["knows"], row)
    add("classes of one alphabet", analysis["within_alphabet"])
    for row in analysis["inner_steps_table"]:
        add(f"{row['steps']} inner steps", row)
    for row in analysis["inner_rates"]:
        add(f"inner rates times {row['factor']:g}, validation classes", row)
    lines += [""] + [f"{row['class']} was taken for {row['taken_for']} {row['times']} times of {row['of']}" for row in analysis["confused"]]
    return "\n".join(lines)


def _summary(accuracies):
    mean, interval = mean_and_interval(accuracies)
    return {"accuracy": float(mean), "interval": float(interval)}


@contextlib.contextmanager
def _inner_rates(learner, factor):
    """The learner with all inner rates times a factor."""
    rate, rates = learner.inner_lr, None if learner.inner_rates is None else learner.inner_rates.numpy().copy()
    learner.inner_lr = rate * factor
    if rates is not None:
        learner.inner_rates.set_value(rates * np.asarray(factor, rates.dtype))
    try:
        yield
    finally:
        learner.inner_lr = rate
        if rates is not None:
            learner.inner_rates.set_value(rates)


def _counts(predictions):
    """How often class i was taken for class j, and how often it could have been: int arrays (classes, classes)."""
    size = len(predictions.builder.classes)
    taken, possible = np.zeros((2, size, size), np.int64)
    for index, said in enumerate(predictions.said):
        numbers = np.array([number for number, _, _ in predictions.builder.draw(index)])
        np.add.at(taken, (numbers[predictions.right], numbers[said]), 1)
        possible[np.ix_(numbers, numbers)] += predictions.builder.k_query
    return taken, possible


def _confused_pairs(predictions):
    taken, possible = _counts(predictions)
    np.fill_diagonal(taken, 0)
    names, pairs = predictions.builder.classes, []
    for flat in np.argsort(-taken, axis=None, kind="stable")[:PAIRS]:
        one, other = np.unravel_index(flat, taken.shape)
        if taken[one, other]:
            pairs.append({"class": names[one], "taken_for": names[other], "times": int(taken[one, other]), "of": int(possible[one, other])})
    return pairs


def _confusion_rates(predictions):
    """Mistaken share of the times that were possible, classes sorted by name; and the alphabets as (name, classes)."""
    taken, possible = _counts(predictions)
    np.fill_diagonal(taken, 0)
    names = predictions.builder.classes
    order = sorted(range(len(names)), key=names.__getitem__)
    groups = {}
    for number in order:
        groups.setdefault(names[number].split("/")[0], []).append(number)
    rates = taken / np.maximum(possible, 1)
    return rates[np.ix_(order, order)], [(name, len(members)) for name, members in groups.items()]


def _worst_lines(predictions, indices):
    """Lines for `draw_sheet`: of each episode the first support image of each class, then the query images that were mistaken."""
    lines = []
    for index in indices:
        x_spt, y_spt, x_qry, _ = predictions.builder[index]
        said, right = predictions.said[index], predictions.right
        firsts = [int(np.argmax(y_spt == label)) for label in range(predictions.builder.n_way)]
        wrong = np.flatnonzero(said != right)
        lines.append((f"episode {index}, {np.mean(said == right):.1%} right; support",
                      [(_grey(x_spt[first]), str(label)) for label, first in enumerate(firsts)]))
        lines.append((f"{len(wrong)} of {len(said)} mistaken", [(_grey(x_qry[number]), f"{right[number]} as {said[number]}") for number in wrong[:20]]))
    return lines


def _grey(image):
    """A network input (C, H, W) in [-1, 1] as uint8 (H, W)."""
    return np.round((image.mean(axis=0) + 1) * 127.5).astype(np.uint8)
